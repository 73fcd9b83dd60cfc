"""The scripts of benchmarks/, which nothing else imports, and the benchmark of speed on the smallest network."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import program
import pytest
import speed
from timed import curves, nets, page, peers, tables, targets, turns, worker

import mixtrain_jax
from mixtrain_jax import models

FOLDER = Path(mixtrain_jax.__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_can_be_imported(script):
    pytest.importorskip({"onnx_networks.py": "torch"}.get(script.name, "jax"))  # no extra of ours brings torch
    importlib.import_module(".".join(script.with_suffix("").parts))


def test_a_record_and_its_page(tmp_path):
    record = tmp_path / "speed.jsonl"
    names = ("forward", "ibp", "step-standard", "step-ibp-8")
    options = ("--nets", "digits_mlp", "--rounds", "1", "--batch", "8", "--json", str(record))
    command = [
        sys.executable,
        str(FOLDER / "speed.py"),
        "--measures",
        *names,
        *options,
        "--seconds",
        str(program.LIMIT),
    ]
    path = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [found] = map(json.loads, record.read_text().splitlines())
    rows = {row["measure"]: row for row in found["rows"]}
    assert list(rows) == ["matmul", *names]
    assert all(row["seconds"][1] > 0 and row["rounds"] == 1 and "failed" not in row for row in rows.values())
    assert rows["matmul"]["share_of_peak"] == 1
    # Two products of 8 examples; biases and the ReLU on top.
    assert rows["forward"]["flops"] == pytest.approx(2 * 8 * (64 * 512 + 512 * 10), rel=0.1)
    ratios = {(row["over"], row["under"]): row["ratio"][1] for row in found["ratios"]}
    assert set(ratios) == {("step-ibp-8", "step-standard"), ("ibp", "forward")}
    of = (lambda row: row["cpu_seconds"]) if found["cores"] == 1 else (lambda row: row["seconds"][1])
    for (over, under), value in ratios.items():
        assert value == pytest.approx(of(rows[over]) / of(rows[under]))
    assert speed.main(["--page", "--json", str(record), "--out", str(tmp_path / "speed")]) == 0
    text = (tmp_path / "speed.md").read_text()
    assert "| digits_mlp | ibp-8 |" in text
    assert (tmp_path / "speed-steps.svg").read_text().startswith("<svg")


def test_what_is_too_large_or_too_slow_is_noted():
    options = worker.Options(rounds=1, seconds=program.LIMIT, cache="", batch=8, gib=0.0)
    found = worker.watch("digits_mlp", ["forward"], options, say=lambda text: None)
    assert "would take" in found.failed["forward"]
    said = []
    found = worker.watch("digits_mlp", ["matmul"], options._replace(seconds=1e-3, gib=None), say=said.append)
    assert found.failed == {"matmul": "not done after 0.001 s"}
    assert len(said) == 1


def test_an_unknown_measure_is_refused(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--measures", "fly"])
    assert "there is no measure 'fly'" in capsys.readouterr().err


def test_turns_end_with_the_seconds_of_a_contender(monkeypatch):
    calls, now = {"quick": 0, "slow": 0}, [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 0.0)
    monkeypatch.setattr(turns, "time", clock)

    def contender(name, seconds):
        def call():
            calls[name] += 1
            now[0] += seconds
            return 0

        return turns.Timed(call)

    timed = {"quick": contender("quick", 0.0), "slow": contender("slow", 0.1)}
    found = list(turns.take_turns(timed, {"quick": 1.0, "slow": 0.1}, rounds=4, seconds=0.25))
    assert [name for i, name, *_ in found if i == 0] == ["quick", "slow"]
    assert calls == {"quick": 4, "slow": 2}
    assert all(wall == pytest.approx(0.1) for _, name, wall, _ in found if name == "slow")


def test_ratios_are_of_rounds_that_both_have():
    assert turns.ratio({0: 2.0, 1: 6.0, 2: 8.0}, {0: 1.0, 1: 2.0}) == [2.25, 2.5, 2.75]
    assert turns.ratio({}, {0: 1.0}) == []


def test_exponents():
    assert curves.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert curves.exponent([1, 2, 4], [3.0, None, 12.0]) == pytest.approx(1)
    assert curves.exponent([1, 2], [3.0, 0.0]) is None


PACKAGE = {
    "mnist_small": "small",
    "cifar_large": "large",
    "cifar_resnet": "resnet",
    "imagenet200_resnet": "resnet_imagenet",
}


@pytest.mark.parametrize("name", PACKAGE)
def test_networks_are_those_of_the_package(name):
    net = nets.NETS[name]
    params = nets.random_params(net)
    network = models.build(PACKAGE[name], classes=net.classes)
    x = np.random.default_rng(1).random((1, *net.shape), np.float32)
    # In the order in which the layers are made.
    order = jax.eval_shape(network.init, jax.random.key(0), x)
    filled = {"params": fill(order["params"], iter(jax.tree.leaves(list(params))))}
    with jax.numpy_rank_promotion("allow"):
        ours = jax.jit(lambda x: nets.apply(net, params, x))(x)
    theirs = jax.jit(network.apply)(filled, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(np.abs(theirs).max()))


def fill(tree, arrays):
    """The same tree with arrays in the order in which layers were made: convolutions, blocks, dense layers."""
    kinds = {"Conv": 0, "Block": 1, "Dense": 2, "kernel": 3, "bias": 4}
    names = sorted(tree, key=lambda name: (kinds[name.split("_")[0]], name))
    found = {name: fill(tree[name], arrays) if isinstance(tree[name], dict) else next(arrays) for name in names}
    for name in names:
        if not isinstance(tree[name], dict):
            assert found[name].shape == tree[name].shape
    return found


def test_bounds_are_compared_by_side():
    mine, other = (np.array([0.0, -3.0]), np.array([2.0, 4.0])), (np.array([-1.0, -2.0]), np.array([2.0, 5.0]))
    # Lower: one larger by 1 of 2, one smaller by as much; upper: one smaller by 1 of 5.
    assert peers.compare("ibp", mine, other) == pytest.approx({"looser": 0.5, "tighter": 0.5})
    assert peers.compare("crown-margins", mine[:1], mine[:1]) == {"looser": 0.0, "tighter": 0.0}
    norm = (np.array(2.0),), (np.array(1.0),)
    assert peers.compare("ibp-gradient", *norm) == {"looser": 1.0, "tighter": 0.0}


def test_of_peers_the_fastest_counts_and_later_records_replace():
    def record(date, lirpa, verify):
        rows = [
            {"net": "cnn7", "over": f"ibp-gradient@{peer}", "under": "ibp-gradient", "ratio": [value] * 3}
            for peer, value in (("auto_LiRPA", lirpa), ("jax_verify", verify))
        ]
        about = {
            "device": "cpu (cpu), 2 host cores",
            "cores": 1,
            "date": date,
            "commit": "abc",
            "note": "",
            "versions": {},
        }
        return {**about, "rows": [], "ratios": rows, "curves": [], "starts": {}}

    [known] = page.merged([record("1", 9.0, 9.0), record("2", 2.0, 1.2)]).values()
    [line] = tables.target_lines(known)
    assert line[1:4] == ["cnn7", "≥ 1.5", "1.20 (jax_verify)"]
    assert line[-1] == "no"
    [(_, limit, row, met)] = targets.aimed(record("3", 3.5, 3.2)["ratios"], gpu=True)
    assert (limit, row["ratio"][1], met) == (3.0, 3.2, True)
    assert page.render([record("1", 2.0, 2.0)])["speed.md"].count("| yes |") == 1


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (12.34, "12.3"), (1.0, "1.00"), (0.01234, "0.0123"), (None, "")]
)
def test_numbers(value, text):
    assert tables.number(value) == text
