"""Training in parallel on torch.distributed: replicas, layers, channels, and a parameter server.

    job.py       what is to be trained, divided how: checked before a process starts
    launch.py    starts the processes by torchrun, and says in a sentence what ended them
    worker.py    one process of a run
    network.py   the network that is trained, cut into stages, and its data: a step's samples follow from its number
    division.py  a step divided over processes: DDP, pipeline schedules, channels
    server.py    the asynchronous parameter server, with bounded staleness
    checkpoint.py  atomic, and refused where it is of another network or division
    traffic.py   the bytes that a process hands to others
    cluster.py   what larger clusters would take, by simulation

    python -m quatrefoil.models.parallel        # the table of docs/parallel.md

The transport is torch's (gloo on CPUs, nccl on GPUs); nothing here opens a connection. Needs the extra ``torch``.
"""
