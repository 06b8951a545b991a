"""Fixed-point networks: a model's graph in integers, each value with a format of its own (docs/fpga.md)."""
