"""The C of a fixed-point network: compiled without a warning, equal to the last bit, in as little memory as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quatrefoil.models import ModelError
from quatrefoil.models.fixed.c_export import CExportError, export_c
from quatrefoil.models.fixed.c_export.memory import Lifetime, places
from quatrefoil.models.fixed.c_export.moves import NOWHERE, nest
from quatrefoil.models.fixed.network import fixed
from quatrefoil.models.fixed.precision import LayerPrecision, Precision
from quatrefoil.models.gallery.small import NETS, random_network, samples
from quatrefoil.numerics import Fixed


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("form", ["fixed<8,4,RND,SAT>", "fixed<16,6>"])
def test_equal_to_the_last_bit(name: str, form: str, tmp_path: Path) -> None:
    model = NETS[name]()
    made = export_c(fixed(model, form), tmp_path, name="net", check=samples(model, 20))
    assert made.checked == 20
    assert made.flash_bytes > 0
    assert f"RAM {made.ram_bytes:,} bytes" in str(made)


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_are_equal_or_refused(seed: int, tmp_path: Path) -> None:
    model = random_network(seed)
    try:
        network = fixed(model, "fixed<10,4,RND,SAT>")
    except ModelError as error:
        assert "has no fixed-point form" in str(error)
        return
    assert export_c(network, tmp_path, check=samples(model, 6)).checked == 6


@pytest.mark.parametrize("seed", [227, 249])
def test_no_step_is_taken_for_unused(seed: int, tmp_path: Path) -> None:
    """At -O2 GCC 12 left out a call of a product with a gate, two of which are alike, before steps were compiled alone."""
    model = random_network(seed)
    assert export_c(fixed(model, "fixed<8,4,RND,SAT>"), tmp_path, check=samples(model, 20)).checked == 20


def test_saturating_sums_in_their_order(tmp_path: Path) -> None:
    model = NETS["digits_cnn"]()
    narrow = Precision(
        Fixed(8, 4, "RND", "SAT"), Fixed(8, 2, "RND", "SAT"), accumulator=Fixed(9, 4, "RND", "SAT"),
        layers={"dense1": LayerPrecision(reuse=8), "conv2": LayerPrecision(reuse=4)},
    )  # fmt: skip
    assert export_c(fixed(model, narrow), tmp_path, check=samples(model, 30)).checked == 30


def test_a_wrong_number_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NETS["digits_cnn"]()
    network = fixed(model, "fixed<16,6>")
    real = type(network).integers

    def off(self: object, *arguments: object) -> dict[str, np.ndarray]:
        found = real(network, *arguments)  # type: ignore[arg-type]
        found["scores.fixed"][3, 1] += 1
        return found

    monkeypatch.setattr(type(network), "integers", off)
    with pytest.raises(CExportError, match=r"'scores' differs in 1 of 50 integers"):
        export_c(network, tmp_path, check=samples(model, 5))


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "net.c").write_text("int main(void) { return 0; }\n")
    with pytest.raises(CExportError, match=r"net\.c is no earlier export"):
        export_c(fixed(NETS["digits_cnn"](), "fixed<8,4>"), tmp_path, name="net")
    with pytest.raises(CExportError, match="give a C identifier"):
        export_c(fixed(NETS["digits_cnn"](), "fixed<8,4>"), tmp_path, name="my net")


def test_places_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lives = {}
        for number in range(12):
            first = int(rng.integers(0, 20))
            lives[str(number)] = Lifetime(int(rng.integers(1, 100)), first, first + int(rng.integers(0, 8)))
        offsets, size = places(lives)
        for one, life in lives.items():
            assert offsets[one] + life.bytes <= size
            for other, beside in lives.items():
                if one < other and life.first <= beside.last and beside.first <= life.last:
                    apart = offsets[one] + life.bytes <= offsets[other] or offsets[other] + beside.bytes <= offsets[one]
                    assert apart, (one, other)
    chain = {str(n): Lifetime(64, n, n + 1) for n in range(10)}
    assert places(chain)[1] == 128, "two neighbours at a time"


def test_moves_become_loops() -> None:
    places_ = np.arange(24).reshape(2, 3, 4)
    turned = nest(places_.transpose(2, 0, 1))
    assert turned is not None
    assert [axis.stride for axis in turned.axes] == [1, 12, 4]
    padded = nest(np.pad(places_, ((0, 0), (1, 0), (0, 2)), constant_values=NOWHERE))
    assert padded is not None
    assert padded.axes[1].table == (NOWHERE, 0, 4, 8)
    assert nest(np.array([[0, 1], [2, 5]])) is None
