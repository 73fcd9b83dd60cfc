"""The judge and the check of certificates as their users call them."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import numpy as np
import onnx
import pytest
from experiments import experiment, options
from onnx import TensorProto, helper, numpy_helper

import mixtrain_jax as mt
from mixtrain_jax import certify, cli, data, foreign, judging, models
from mixtrain_jax.certify import certificates as files
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.config import of_tables
from mixtrain_jax.doctor import examine
from mixtrain_jax.errors import CheckpointError, ModelError
from mixtrain_jax.fingerprints import fingerprint
from mixtrain_jax.foreign import load_onnx_for
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.resume import untrained

QUICK = ["--attacks", "customary", "--certify", "ibp", "--curve-examples", "0", "--examples", "40"]
TINY = {"training.epochs": 4, "model.width": 16, "certify.attack_steps": 2, "certify.attack_restarts": 1}
TINY |= {"training.points": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judging")
    with jax.numpy_dtype_promotion("standard"):  # which optax wants
        assert (
            cli.main(["train", "digits", *options(TINY), "--certify.bounds", "ibp", "--workdir", str(folder / "run")])
            == 0
        )
    return folder / "run"


@pytest.fixture(scope="module")
def judged(trained):
    options = ["--eps", "0.02", "--skip-proved", "True", "--out", str(trained / "judged")]
    assert cli.main(["judge", str(trained), *QUICK, *options]) == 0
    return trained / "judged"


def test_a_run_is_judged_into_a_folder(judged):
    numbers = json.loads((judged / "judgement.json").read_text())
    assert 0 < numbers["verified_accuracy"] <= numbers["attacked_accuracy"] <= numbers["clean_accuracy"] <= 1
    assert (numbers["eps"], numbers["norm"], numbers["examples"], numbers["data"]) == (0.02, "linf", 40, "digits")
    assert numbers["jax"] == jax.__version__
    assert numbers["skip_proved"] is True
    assert json.loads((judged / "robustbench.json").read_text())["verifier"] == "ibp"
    assert "<svg" in (judged / "report.html").read_text() or not numbers["broken_by"]
    with np.load(judged / "adversarial.npz", allow_pickle=False) as broken:
        assert len(broken["index"]) == sum(numbers["broken_by"].values()) == len(broken["adversarial"])
    lines = (judged / "certificates.jsonl").read_text().splitlines()
    assert len(lines) == 1 + numbers["verified_by"]["ibp"]


def test_its_certificates_hold_and_a_changed_one_does_not(judged, trained, tmp_path, capsys):
    file = judged / "certificates.jsonl"
    certificates = certify.read(file)
    count, options = len(certificates.records), ["--model", str(trained), "--eps", "0.02"]
    assert cli.main(["verify-certificate", str(file), *options, "--examples", "40"]) == 0
    words = capsys.readouterr().out
    assert f"{count} of {count} certificates hold, recomputed in float64" in words
    told = f"{count} of 40 distinct images among the first 40 of the 500 test images of digits, verified accuracy"
    assert f"Proved: l-infinity eps 0.02, domain 0 to 1: {told} {count / 40:.2%}." in words
    changed = file.read_text().splitlines()
    entry = json.loads(changed[1])
    changed[1] = json.dumps({**entry, "margin": entry["margin"] * 2}, sort_keys=True)
    (tmp_path / "changed").write_text("\n".join(changed) + "\n")
    assert cli.main(["verify-certificate", str(tmp_path / "changed"), *options]) == 1
    words = capsys.readouterr().out
    assert "1 rejected" in words
    assert f"{count - 1} of 500 distinct images among the 500 test images of digits" in words
    assert "The file says that 40 images were tried; --examples 40 counts among those." in words
    first = str(certificates.records[0].index + 1)
    assert cli.main(["verify-certificate", str(file), *options, "--examples", first]) == 0
    assert f"{count - 1} certificates of later images were not looked at." in capsys.readouterr().out


def test_the_doctor_finds_the_arrays_of_runs_and_judgements_as_they_were_written(judged, trained):
    for folder, names in (
        (trained, {"certificates.npz", "curve.json"}),
        (judged, {"adversarial.npz", "certificates.jsonl"}),
    ):
        findings = examine(folder)
        assert {f"{name}, SHA-256" for name in names} <= {found.subject for found in findings if found.verdict == "ok"}
        assert not [found for found in findings if found.verdict == "fault"]
    path = judged / "adversarial.npz"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert [finding.subject for finding in examine(judged) if finding.verdict == "fault"] == [
            f"{path.name}, SHA-256"
        ]
    finally:
        path.write_bytes(whole)


def test_the_radius_is_that_of_the_run_where_the_command_names_none(judged, trained, capsys):
    assert cli.main(["verify-certificate", str(judged / "certificates.jsonl"), "--model", str(trained)]) == 1
    words = capsys.readouterr().out
    assert "rejected: of a smaller radius" in words
    assert "Proved: l-infinity eps 0.1, domain 0 to 1: 0 of 500 distinct images" in words


@pytest.mark.parametrize(
    ("domain", "eps"), [((5.0, 6.0), 0.1), ((0.0, 1.0), 0.0)], ids=["a domain of its own", "a radius of 0"]
)
def test_forged_certificates_are_refused(judged, trained, tmp_path, capsys, domain, eps):
    """Of all images that are misclassified, with crossed boxes; and of all others, at a radius that says nothing."""
    found, split = mt.load_run(trained), data.load("digits").test.floats()
    logits = np.asarray(jax.jit(functools.partial(found.apply, found.params))(split.images), np.float64)
    margins = logits[np.arange(len(split)), split.labels] - np.sort(logits, 1)[:, -2]
    wrong = logits.argmax(1) != split.labels
    chosen = np.flatnonzero(wrong if domain[0] else ~wrong & (margins > 1e-3))
    assert len(chosen) > 10
    known = certify.read(judged / "certificates.jsonl")
    header = dataclasses.replace(known.header, domain=domain, images=len(chosen))
    records = [
        dataclasses.replace(
            known.records[0],
            index=int(i),
            image_sha256=files.image_sha256(split.images[i]),
            label=int(split.labels[i]),
            eps=eps,
            margin=0.1 if wrong[i] else float(margins[i]) - 1e-4,
        )
        for i in chosen
    ]
    certify.write(tmp_path / "forged", certify.Certificates(header, files.sealed(header, records)))
    assert cli.main(["verify-certificate", str(tmp_path / "forged"), "--model", str(trained)]) == 1
    words = capsys.readouterr().out
    assert f"0 of {len(chosen)} certificates hold" in words
    assert "verified accuracy 0.00%" in words


def test_a_judge_that_is_stopped_writes_nothing(trained, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(certify, "text", stop)
    out = tmp_path / "judged"
    assert cli.main(["judge", str(trained), *QUICK, "--eps", "0.02", "--out", str(out)]) == 130
    assert not out.exists()
    assert "Stopped by Ctrl-C" in capsys.readouterr().err


def test_certificates_of_an_earlier_judgement_do_not_stay_beside_a_later_one(judged, trained, tmp_path):
    out = shutil.copytree(judged, tmp_path / "judged")
    options = [*QUICK, "--norm", "l2", "--eps", "0.02", "--out", str(out)]
    assert cli.main(["judge", str(trained), *options]) == 0
    assert json.loads((out / "judgement.json").read_text())["norm"] == "l2"
    assert not (out / "certificates.jsonl").exists()


def test_a_run_is_loaded_in_python_without_its_data(trained, monkeypatch):
    monkeypatch.setattr(data, "load", pytest.fail)
    before = sorted(trained.rglob("*"))
    found = mt.load_run(trained)
    assert sorted(trained.rglob("*")) == before
    assert (found.eps, found.domain, found.config.model.width) == (0.1, (0.0, 1.0), 16)
    assert fingerprint(found.params) == json.loads((trained / "summary.json").read_text())["params_sha256"]
    ball = mt.linf_ball(np.full((2, 8, 8, 1), 0.5, np.float32), found.eps, found.domain)
    assert mt.ibp(found.apply)(found.params, ball).lower.shape == (2, 10)


@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3)), ("digits", (8, 8, 1))])
@pytest.mark.parametrize("best", [0, 7])
def test_what_a_run_chose_is_loaded_for_every_data_set(name, shape, best, tmp_path):
    config = experiment(data=name, model="mlp", width=3, choose="best" if best else "last")
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        mt.load_run(tmp_path)
    network = models.build("mlp", classes=10, width=3, normalization=data.signature(name).normalization)
    params = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), np.float32))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 1.0, leaf.dtype), params)
    chosen = jax.tree.map(lambda leaf: 2 * leaf, params)
    saved = {"step": np.int64(9), "seconds": np.float64(0), "state": {"params": params}}
    if best:
        saved["best"] = {"step": np.int64(best), "verified": np.float64(0.5), "params": chosen}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(9, saved)
    found = mt.load_run(str(tmp_path))
    assert fingerprint(found.params) == fingerprint(chosen if best else params)
    assert found.apply(found.params, np.zeros((2, *shape), np.float32)).shape == (2, 10)


def test_whoever_takes_a_run_for_a_model_file_is_told(trained):
    with pytest.raises(ModelError, match=r"mixtrain_jax\.load_run"):
        foreign.load_model(str(trained))


def test_a_run_of_another_version_is_judged_by_its_parameters(trained, tmp_path):
    """Its config lacks a field, and its checkpoint holds another state of training."""
    shutil.copytree(trained, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["training"]["bad_steps"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    folder = tmp_path / "run" / "checkpoints"
    with jax.numpy_dtype_promotion("standard"):
        setup = prepare(of_tables(config))
    saved = Checkpoints(folder).restore(untrained(setup), pytest.fail)
    shutil.rmtree(folder)
    others = {name: getattr(saved.state, name) for name in ("params", "mix_state")}
    older = {"step": saved.step, "seconds": saved.seconds, "state": {**others, "bad_step": np.int32(-1)}}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(int(saved.step), older)
    with jax.numpy_dtype_promotion("standard"):
        params = mt.load_run(tmp_path / "run").params
    assert fingerprint(params) == json.loads((trained / "summary.json").read_text())["params_sha256"]
    with pytest.raises(CheckpointError, match=r"no leaf state\..*it belongs to another network, optimizer or version"):
        Checkpoints(folder).restore(untrained(setup), pytest.fail)


def saved_linear(path, shape, names=("y",)):
    """An ONNX file of a linear network of 64 entries, for inputs of a shape."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.normal(size=(64, 10)).astype(np.float32), "w")
    sizes = numpy_helper.from_array(np.array([1 if shape[0] == 1 or len(shape) == 1 else -1, 64]), "s")
    nodes = [helper.make_node("Reshape", ["x", "s"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
    nodes.append(helper.make_node("Relu", ["f"], ["z"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [weights, sizes],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("shape", "note"),
    [
        (["n", 1, 8, 8], r"are given to it as \[1, 8, 8\], row by row"),
        (["n", 8, 8, 1], None),
        (["n", 64], r"\[8, 8, 1\] are given to it as \[64\], row by row"),
        ([64], r"as \[64\], row by row"),
        ([64, 1], "one image, without a batch"),
        ([1, 1, 1, 64], r"as \[1, 1, 64\]"),
        (["n", "c", "h", "w"], r"as \[1, 8, 8\]"),
    ],
    ids=str,
)
def test_an_onnx_file_takes_images_in_its_own_layout(shape, note, tmp_path):
    display = Display()
    with display.console.capture() as shown:
        subject = judging.load(judging.Source(str(saved_linear(tmp_path / "net.onnx", shape)), "digits"), display)
    images = subject.dataset.test[:5].floats().images
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    found = subject.apply(subject.params, images)
    np.testing.assert_allclose(found, images.reshape(5, 64) @ weights, rtol=1e-4, atol=1e-4)
    said = " ".join(shown.get().split())
    assert "agrees with ONNX Runtime" in said
    assert re.search(note, said) if note else "given to it" not in said


def test_an_onnx_file_of_several_outputs_is_judged_by_the_one_that_is_named(tmp_path, capsys):
    path = str(saved_linear(tmp_path / "net.onnx", ["n", 64], ("y", "z")))
    assert cli.main(["judge", path, *QUICK, "--data", "digits", "--eps", "0.01"]) == 1
    assert "output=NAME" in " ".join(capsys.readouterr().err.split())
    out = tmp_path / "out"
    arguments = ["judge", path, *QUICK, "--data", "digits", "--eps", "0.01", "--out", str(out), "--output", "y"]
    assert cli.main(arguments) == 0
    numbers = json.loads((out / "judgement.json").read_text())
    assert numbers["model"] == "net"
    checked = ["verify-certificate", str(out / "certificates.jsonl"), "--model", path, "--data", "digits"]
    checked += ["--output", "y"]
    assert cli.main(checked) == 2
    assert "verify-certificate wants --eps for" in capsys.readouterr().err
    assert cli.main([*checked, "--eps", "0.01"]) == 0
    # An attack and a bound of a linear network agree but for roundings.
    assert numbers["verified_accuracy"] == pytest.approx(numbers["attacked_accuracy"], abs=1 / 40)


def test_an_onnx_file_of_colour_images_flattens_them_channels_first(tmp_path):
    weights = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "f.onnx")
    model = load_onnx_for(tmp_path / "f.onnx", (2, 2, 3))
    images = np.random.default_rng(1).normal(size=(5, 2, 2, 3)).astype(np.float32)
    wanted = images.transpose(0, 3, 1, 2).reshape(5, 12) @ weights
    np.testing.assert_allclose(model.apply(model.params, images), wanted, rtol=1e-5, atol=1e-5)
    assert "with channels first, as PyTorch flattens" in model.notes[-1]
    with pytest.raises(ModelError, match=r"takes images of shape \[12\], which those of shape \[2, 3, 3\] do not fit"):
        load_onnx_for(tmp_path / "f.onnx", (2, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["judge", "nothing.onnx"], 2, "There is no nothing.onnx. A model is a run folder, FILE.onnx or"),
        (["judge", "runs/nosuch", "--eps", "0.1"], 2, "There is no runs/nosuch. A model is a run folder"),
        (["judge", "os:path", "--eps", "0.1"], 2, "judge wants --data for os:path"),
        (["judge", "os:path", "--data", "digits"], 2, "judge wants --eps for os:path"),
        (["verify-certificate", "FILE", "--model", "runs/nosuch"], 2, "There is no runs/nosuch"),
        (["judge", "os:path", "--data", "digits", "--eps", "0.1"], 1, "os:path"),
        (["judge", "RUN", "--eps", "-1"], 2, "eps >= 0, got -1"),
        (["judge", "RUN", "--examples", "-1"], 2, "examples and curve_examples of 0 or more"),
        (["judge", "."], 2, "no run folder"),
        (["verify-certificate", "nothing.jsonl", "--model", "RUN"], 1, "nothing.jsonl"),
        (["verify-certificate", "nothing.jsonl", "--model", "RUN", "--examples", "-1"], 2, "examples of 0 or more"),
        (["nonsense"], 2, "Unknown command 'nonsense'.\n\nusage: mixtrain COMMAND"),
        (["trian"], 2, "Unknown command 'trian'. Did you mean 'train'?\n\nusage: mixtrain COMMAND"),
    ],
)
def test_errors_name_what_is_wrong(arguments, code, message, trained, judged, capsys):
    places = {"RUN": str(trained), "FILE": str(judged / "certificates.jsonl")}
    assert cli.main([places.get(word, word) for word in arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("model", ["RUN", "os:path"])
def test_a_radius_is_looked_at_before_anything_is_loaded(model, trained, capsys, monkeypatch):
    monkeypatch.setattr(judging, "load", lambda *_: pytest.fail("it loads"))
    model = str(trained) if model == "RUN" else model
    assert cli.main(["judge", model, "--data", "digits", "--eps", "-1"]) == 2
    assert "eps >= 0, got -1" in capsys.readouterr().err


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    assert cli.main(["--version"]) == 0
    with pytest.raises(SystemExit) as done:
        cli.main(["judge", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for word in ("verify-certificate", "doctor", "mixtrain_jax 0", "--attacks", "--norm", "judgements/NAME-NORM-EPS"):
        assert word in text
