"""Networks that PyTorch's exporters wrote, of benchmarks/onnx_networks.py, without its metadata."""

from pathlib import Path

import jax
import mutated_onnx as files
import numpy as np
import onnx_sweep
import pytest

import mixtrain_jax as mt

EXPORTS = sorted((Path(__file__).parent / "onnx").glob("*.onnx"))


def test_there_are_exports_and_they_are_small():
    assert len(EXPORTS) > 50
    assert sum(path.stat().st_size for path in EXPORTS) < 400_000


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.name.removesuffix(".onnx"))
def test_exports_compute_what_onnxruntime_computes(path):
    images = onnx_sweep.pictures(2)
    model, ours, theirs = onnx_sweep.logits_of(path, images)
    assert files.agree(ours, theirs), f"{np.abs(ours - theirs).max()} off"
    box = jax.eval_shape(mt.ibp(lambda x: model.apply(model.params, x)), mt.linf_ball(images, 0.01))
    assert box.lower.shape == (2, model.classes)
