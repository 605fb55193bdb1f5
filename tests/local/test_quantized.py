"""The embedded embedder, quantized, asked through SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from local.conftest import missing, opened

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.local, pytest.mark.long]


def test_a_slice_answers_like_the_model_it_comes_from(own_home: None, tmp_path: Path) -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    from sqluice.workers.quant import runner, serve

    con = opened(allow_models=["default", str(tmp_path)])
    texts = [text for (text,) in con.execute("SELECT text FROM r").fetchall()]
    told = runner.quantize(
        "package:embedder", "nested", (4, 8), 128, texts, tmp_path / "m.sq", device="cpu", tokens=900
    )
    assert told["base"]["licence"] == "Apache-2.0"
    assert len(told["layers"]) == 36
    assert told["quality"]["8"]["layer_error"] < 0.01 < told["quality"]["4"]["layer_error"] < 0.1
    assert serve.verify(tmp_path / "m.sq")["widths"][8] > 0.999
    vectors = {}
    for uri in ("package:embedder", f"artifact:{tmp_path}/m.sq#bits=8", f"artifact:{tmp_path}/m.sq#bits=4"):
        con.execute(f"SET ai_embedder = '{uri}'")
        rows = con.execute("SELECT AI_EMBED(text) FROM r ORDER BY id").fetchall()
        vectors[uri] = np.array([row for (row,) in rows])
    base, eight, four = vectors.values()
    assert (base * eight).sum(1).min() > 0.998
    assert (base * four).sum(1).mean() > 0.96
    con.close()
