"""Queries from files to answers, by the command line and in Python."""

import csv
import gzip
import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mixtrain_jax import cli, foreign
from mixtrain_jax.errors import QueryError
from mixtrain_jax.queries import Session, networks
from mixtrain_jax.queries.competition import read_instances

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "vnncomp"
BOX = "(assert (and (>= X_0 -1) (<= X_0 1) (>= X_1 0.1) (<= X_1 0.3)))"
CLASSIC = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1")) + BOX
NAMED = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,2]) (declare-output Y float32 [1,2]))
(assert (and (>= X[0,0] -1) (<= X[0,0] 1) (>= X[0,1] 0.1) (<= X[0,1] 0.3)))
"""
UNSAT, SAT = "(assert (<= Y_0 -0.125))", "(assert (>= Y_0 0.5))"


def network(path, scale=1.0, open_batch=False):
    """Of two inputs: |x0| * scale, and x1."""
    weights = {
        "w1": np.float32([[1, -1, 0, 0], [0, 0, 1, -1]]),
        "b1": np.zeros(4, np.float32),
        "w2": np.float32([[scale, 0], [scale, 0], [0, 1], [0, -1]]),
        "b2": np.zeros(2, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w2", "b2"], ["y"]),
    ]
    batch = "n" if open_batch else 1
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2]) for name in "xy")
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    network(folder / "net.onnx")
    network(folder / "other.onnx", scale=0.25)
    (folder / "packed.onnx.gz").write_bytes(gzip.compress((folder / "net.onnx").read_bytes()))
    (folder / "unsat.vnnlib").write_text(CLASSIC + UNSAT)
    (folder / "sat.vnnlib").write_text(CLASSIC + SAT)
    (folder / "named.vnnlib").write_text(NAMED + "(assert (>= Y[0,0] 0.5))")
    (folder / "damaged.vnnlib").write_text(CLASSIC + "(assert (")
    return folder


@pytest.fixture(scope="module")
def session():
    return Session()


def ask(session, folder, text, *files, timeout=60.0):
    (folder / "asked.vnnlib").write_text(text)
    names = {"": folder / files[0]} if files else {"": folder / "net.onnx"}
    return session.ask(folder / "asked.vnnlib", names, timeout)


def run(*arguments):
    return cli.main(["verify", *map(str, arguments)])


def test_unsat_and_sat_in_the_form_of_the_competition(folder, capsys, tmp_path):
    assert run(folder / "net.onnx", folder / "unsat.vnnlib", "--results", tmp_path / "a.txt") == 0
    assert capsys.readouterr().out == "unsat\n"
    assert (tmp_path / "a.txt").read_text() == "unsat\n"
    assert run("--network", folder / "net.onnx", folder / "sat.vnnlib", "--results", tmp_path / "a.txt") == 0
    out = capsys.readouterr().out
    assert (tmp_path / "a.txt").read_text() == out
    word, *pairs = out.splitlines()
    values = dict(re.findall(r"\((\w+) ([^\s()]+)\)", "".join(pairs)))
    assert word == "sat"
    assert "".join(pairs).startswith("((X_0 ")
    x = np.array([float(values[f"X_{i}"]) for i in range(2)])
    y = onnxruntime.InferenceSession(folder / "net.onnx").run(None, {"x": x.astype(np.float32)[None]})[0][0]
    assert -1 <= x[0] <= 1
    assert 0.1 <= x[1] <= 0.3
    assert y[0] > 0.5
    assert [float(values[f"Y_{j}"]) for j in range(2)] == y.tolist()


def test_sat_in_the_form_of_the_standard(folder, capsys):
    assert run(folder / "named.vnnlib", "--network", f"f={folder / 'packed.onnx.gz'}", "--timeout", "30") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["sat", "X float32 [1,2]"]
    assert lines[4] == "Y float32 [1,2]"
    assert len(lines) == 7
    assert float(lines[5]) > 0.5


def test_a_batch_keeps_what_is_compiled_and_goes_on_where_it_stopped(folder, capsys, tmp_path):
    rows = ["net.onnx,unsat.vnnlib,60", "other.onnx,sat.vnnlib,60", "net.onnx,damaged.vnnlib,60"]
    (folder / "instances.csv").write_text("\n".join(rows))
    results = tmp_path / "results"
    assert run("--batch", folder / "instances.csv", "--results", results) == 1
    told = capsys.readouterr()
    assert [line.split(",")[2] for line in told.out.splitlines()] == ["unsat", "unsat", "error"]
    assert "damaged" in told.err
    assert {path.name for path in results.glob("*.txt")} == {
        "net_unsat.txt",
        "other_sat.txt",
        "net_damaged.txt",
    }
    assert (results / "net_damaged.txt").read_text() == "error\n"
    with open(results / "results.csv") as file:
        assert [row[2] for row in csv.reader(file)] == ["unsat", "unsat", "error"]
    assert run("--batch", folder / "instances.csv", "--results", results) == 0
    assert capsys.readouterr().out == ""


def test_networks_that_differ_in_weights_alone_share_programs(folder, session):
    first = ask(session, folder, CLASSIC + SAT)
    second = ask(session, folder, CLASSIC + SAT, "other.onnx")
    assert (first.status, second.status) == ("sat", "unsat")
    assert len(session._verifiers) == 1


def test_compilation_may_be_apart(folder):
    apart = Session(compile_apart=True)
    first, second = (ask(apart, folder, CLASSIC + UNSAT, name) for name in ("net.onnx", "other.onnx"))
    assert 0 < first.compiling < first.seconds
    assert second.compiling == 0
    assert (first.status, second.status) == ("unsat", "unsat")


def test_every_box_of_a_disjunction_is_answered(folder, session):
    ends = [(i / 8, (i + 1) / 8, (max(-i, i + 1) + 1) / 8) for i in range(-8, 8)]
    boxes = " ".join(f"(and (>= X_0 {low}) (<= X_0 {high}) (>= Y_0 {above}))" for low, high, above in ends)
    assert ask(session, folder, CLASSIC + f"(assert (or {boxes}))").status == "unsat"
    found = ask(session, folder, CLASSIC + f"(assert (or {boxes} (and (== X_0 0.5) (>= Y_0 0.375))))")
    assert (found.status, found.witness.inputs[0]) == ("sat", 0.5)


def test_no_input_at_all_is_unsat(folder, session):
    assert ask(session, folder, CLASSIC + "(assert (>= X_0 2))").status == "unsat"


def test_a_fixed_decimal_input_is_reported_as_it_is_written(folder, session):
    found = ask(session, folder, CLASSIC + "(assert (== X_0 0.7)) (assert (>= Y_0 0.6))")
    assert found.status == "sat"
    assert found.witness.inputs[0] == 0.7


def test_inputs_and_outputs_in_one_comparison(folder, session):
    """|x0| is at least x0, and above it somewhere: by a column of the input beside the outputs."""
    above = "(assert (>= (- Y_0 X_0) 0.25))"
    assert ask(session, folder, CLASSIC + above).status == "sat"
    below = "(assert (<= (- Y_0 X_0) -0.001))"
    assert ask(session, folder, CLASSIC + below).status == "unsat"


def test_two_copies_of_a_network(folder, session):
    other = "(declare-network g (equal-to f) (declare-input A float32 [1,2]) (declare-output B float32 [1,2]))\n"
    declared = NAMED.replace("(assert", other + "(assert", 1)
    bounds = "(assert (and (>= A[0,0] 0.5) (<= A[0,0] 0.75) (== A[0,1] 0)))"
    (folder / "two.vnnlib").write_text(declared + bounds + "(assert (>= (- B[0,0] Y[0,0]) 0.8))")
    found = session.ask(folder / "two.vnnlib", {"f": folder / "net.onnx"}, 60)
    assert found.status == "unsat"  # at most 0.75
    with pytest.raises(
        QueryError, match=r"wants a file of each of its networks \['f'\], and got files of \['f', 'h'\]"
    ):
        session.ask(folder / "two.vnnlib", {"f": folder / "net.onnx", "h": folder / "net.onnx"}, 60)


def test_a_counterexample_that_onnxruntime_does_not_confirm_is_none(folder, monkeypatch):
    monkeypatch.setattr(foreign, "onnxruntime_of", lambda path: lambda inputs: np.zeros(2, np.float32))
    found = ask(Session(), folder, CLASSIC + SAT)
    assert found.status == "unknown"
    assert "ONNX Runtime" in found.reason


def test_without_onnxruntime_our_own_outputs_are_reported(folder, monkeypatch):
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: None)
    found = ask(Session(), folder, CLASSIC + SAT)
    assert found.status == "sat"
    assert not found.witness.replayed


def test_time_that_is_over_is_said(folder, session):
    found = ask(session, folder, CLASSIC + UNSAT, timeout=1e-9)
    assert (found.status, found.reason) == ("timed-out", "timeout")


def test_a_file_that_leaves_its_batch_open(tmp_path):
    path = network(tmp_path / "open.onnx", open_batch=True)
    assert foreign.load_onnx(path).shape == (2,)
    assert foreign.onnxruntime_of(path)(np.float32([-0.5, 0.25])).tolist() == [0.5, 0.25]


def test_structures_tell_functions_apart(folder, tmp_path):
    first, second = (foreign.load_onnx(folder / name).structure for name in ("net.onnx", "other.onnx"))
    assert first == second
    model = onnx.load(folder / "net.onnx")
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 2.0))
    (tmp_path / "scaled.onnx").write_bytes(model.SerializeToString())
    assert foreign.load_onnx(tmp_path / "scaled.onnx").structure not in (first, "")


REFUSED = {
    "nothing": ([], 2, "verify wants QUERY.vnnlib --network NAME=FILE.onnx"),
    "no network": (["sat.vnnlib"], 2, "verify wants QUERY.vnnlib"),
    "missing query": (["net.onnx", "missing.vnnlib"], 1, "missing.vnnlib: No such file"),
    "missing network": (["missing.onnx", "sat.vnnlib"], 1, "missing.onnx: No such file"),
    "damaged": (["net.onnx", "damaged.vnnlib"], 1, "damaged.vnnlib: Line 5"),
    "another name": (["named.vnnlib", "--network", "g=net.onnx"], 1, "of each of its networks ['f']"),
    "twice": (["named.vnnlib", "--network", "f=net.onnx", "--network", "f=other.onnx"], 2, "each name once"),
    "time": (["net.onnx", "sat.vnnlib", "--timeout", "0"], 2, "a timeout above 0 seconds"),
    "files beside a batch": (["sat.vnnlib", "--batch", "instances.csv"], 2, "wants no other files"),
    "no instances": (["--batch", "missing.csv"], 1, "Cannot read missing.csv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_command_lines_end_in_one_sentence(name, folder, capsys, monkeypatch):
    arguments, code, said = REFUSED[name]
    monkeypatch.chdir(folder)
    assert run(*arguments) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err


def test_an_error_is_in_the_file_of_results(folder, capsys, tmp_path):
    assert run(folder / "net.onnx", folder / "damaged.vnnlib", "--results", tmp_path / "a.txt") == 1
    assert (tmp_path / "a.txt").read_text() == "error\n"


def test_sizes_that_do_not_fit_are_said(folder, session):
    text = CLASSIC.replace(BOX, "(declare-const X_2 Real)" + BOX + "(assert (== X_2 0))") + SAT
    with pytest.raises(QueryError, match=r"net\.onnx maps 2 inputs to 2 outputs, and the query wants 3 and 2"):
        ask(session, folder, text)


def test_what_is_supported_is_listed(folder, capsys):
    def told(*arguments):
        return cli.main(["supports", *map(str, arguments)]), capsys.readouterr().out

    code, out = told(folder / "net.onnx")
    assert code == 0
    assert out.startswith("supported\ninputs [2], outputs 2\n")
    code, out = told(folder / "named.vnnlib")
    assert code == 0
    assert "VNN-LIB 2.0\nnetwork f: [1, 2] float32 to [1, 2]\n1 boxes of inputs, 1 conjunctions" in out
    code, out = told(folder / "damaged.vnnlib")
    assert code == 1
    assert out.startswith("not supported\n")
    assert told("--vnnlib-versions") == (0, "1.0\n2.1\n")
    assert "Gemm" in told("--onnx-operators")[1].split()
    assert cli.main(["supports", "--nothing"]) == 2


def test_instances_may_name_several_networks(tmp_path):
    (tmp_path / "a.csv").write_text("\"[('f', 'onnx/a.onnx'), ('g', 'onnx/b.onnx')]\",vnnlib/q.vnnlib,7.5\n")
    (instance,) = read_instances(tmp_path / "a.csv")
    assert instance.networks == {"f": tmp_path / "onnx/a.onnx", "g": tmp_path / "onnx/b.onnx"}
    assert (instance.timeout, instance.name) == (7.5, "a_b_q")
    for row in ("a.onnx", "a.onnx,b.vnnlib,soon", "[1],b.vnnlib,1"):
        (tmp_path / "a.csv").write_text(row)
        with pytest.raises(QueryError, match="row 1 is no network, query and seconds"):
            read_instances(tmp_path / "a.csv")


def test_the_scripts_of_the_competition_are_sound_shell():
    for name in ("install_tool.sh", "prepare_instance.sh", "run_instance.sh"):
        subprocess.run(["bash", "-n", SCRIPTS / name], check=True)
