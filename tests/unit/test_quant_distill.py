"""Coupled training of binary paths: its gradient, where it starts, and that a small model gets better by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from test_quant_models import TEXTS, saved

from sqluice.errors import DataError

torch = pytest.importorskip("torch")

from sqluice.workers.quant import artifact, distill, runner, serve  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def paths(seed: int) -> tuple[Any, Any, Any]:
    made = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (2, 5, 7), generator=made).float() * 2 - 1
    return signs, torch.randn(2, 5, generator=made), torch.randn(2, 7, generator=made)


def test_the_start_is_the_fit_it_comes_from() -> None:
    signs, g, h = paths(0)
    latent, rows, columns = distill.latent_of(signs, g, h)
    found = distill.coupled().apply(latent, rows, columns)
    assert torch.allclose(found, (signs * g[:, :, None] * h[:, None, :]).sum(0), atol=1e-6)


def test_gradients_go_straight_through_and_are_exact_for_the_scales() -> None:
    signs, g, h = paths(1)
    latent, rows, columns = (one.requires_grad_() for one in distill.latent_of(signs, g, h))
    wanted = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    (distill.coupled().apply(latent, rows, columns) * wanted).sum().backward()
    assert torch.equal(latent.grad, wanted)
    held = distill.signs_of(latent, rows, columns).detach()
    again = [one.detach().clone().requires_grad_() for one in (rows, columns)]
    ((held * again[0][:, :, None] * again[1][:, None, :]).sum(0) * wanted).sum().backward()
    assert torch.allclose(rows.grad, again[0].grad, atol=1e-5)
    assert torch.allclose(columns.grad, again[1].grad, atol=1e-5)


@pytest.mark.parametrize("kind", [pytest.param("bert", marks=pytest.mark.long), "llama"])
def test_a_small_model_learns_from_its_base(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", kind)
    before = runner.quantize(str(folder), "rabit", (2,), 16, TEXTS, tmp_path / "m.sq", device="cpu")
    told: list[str] = []
    after = distill.distill(
        tmp_path / "m.sq", TEXTS, tmp_path / "d.sq", lambda *one: told.append(one[2]), steps=40, device="cpu"
    )
    losses = [float(line.rpartition(" ")[2]) for line in told]
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]
    assert after["distilled"]["steps"] == 40
    assert after["quality"]["2"]["cosine"] > before["quality"]["2"]["cosine"]
    assert serve.verify(tmp_path / "d.sq")["widths"][2] == pytest.approx(after["quality"]["2"]["cosine"], abs=2e-3)
    first, second = artifact.read(tmp_path / "m.sq"), artifact.read(tmp_path / "d.sq")
    assert [name for name in first.entries if name.startswith("weights/")] == [
        name for name in second.entries if name.startswith("weights/")
    ]


def test_only_binary_paths_are_distilled(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "bert")
    runner.quantize(str(folder), "rtn", (4,), 16, TEXTS, tmp_path / "m.sq", device="cpu")
    with pytest.raises(DataError, match="was made by rtn; only rabit"):
        distill.distill(tmp_path / "m.sq", TEXTS, tmp_path / "d.sq", device="cpu")
