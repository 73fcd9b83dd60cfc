import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import mutated_onnx as files
import numpy as np
import pytest
from flax import nnx

import mixtrain_jax as mt
from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign import from_object, load_import_path, load_model
from mixtrain_jax.foreign.import_path import read_params

SHAPE = (5,)
IMAGES = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
LOGITS = np.maximum(IMAGES @ WEIGHTS, 0)


def relu_of_product(params, x):
    return jax.nn.relu(x @ params["w"])


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(3, use_bias=False)(x))


class Nnx(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(5, 3, use_bias=False, rngs=nnx.Rngs(0))
        self.dense.kernel.set_value(jnp.asarray(WEIGHTS))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return nnx.relu(self.dropout(self.dense(x)))


class Equinox(eqx.Module):
    w: jax.Array
    dropout: eqx.nn.Dropout
    sizes: jax.Array  # integers are no parameters

    def __call__(self, x):
        return self.dropout(jax.nn.relu(x @ self.w))


MODULE = """
import numpy as np, jax

WEIGHTS = np.{weights}.astype(np.float32)

def apply(params, x):
    return jax.nn.relu(x @ params["w"])

def logits(x):
    return apply({{"w": WEIGHTS}}, x)

def pair():
    return apply, {{"w": WEIGHTS}}

def one(x):
    return apply({{"w": WEIGHTS}}, x[None])[0]

def fails():
    raise RuntimeError("no such weights\\nmore")

def again():
    return pair

class Holder:
    inner = staticmethod(logits)

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    name = f"made_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(weights=repr(WEIGHTS).replace(", dtype=float32", "")))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def assert_the_network(model, params=True):
    np.testing.assert_allclose(model.apply(model.params, IMAGES), LOGITS, rtol=1e-5, atol=1e-6)
    assert model.classes == 3
    assert model.shape == SHAPE
    leaves = jax.tree.leaves(model.params)
    assert [leaf.shape for leaf in leaves] == ([(5, 3)] if params else [])
    ball = mt.linf_ball(IMAGES, 0.1)
    box = mt.ibp(lambda x: model.apply(model.params, x))(ball)
    assert (np.asarray(box.lower) <= LOGITS + 1e-5).all()
    assert (np.asarray(box.upper) >= LOGITS - 1e-5).all()


@pytest.mark.parametrize("attribute", ["logits", "pair", "Holder.inner"])
def test_import_paths(module, attribute):
    assert_the_network(load_import_path(f"{module}:{attribute}", shape=SHAPE), params=attribute == "pair")


def test_a_function_of_one_image(module):
    assert_the_network(load_import_path(f"{module}:one", shape=SHAPE, per_example=True), params=False)
    with pytest.raises(ModelError, match="say per_example"):
        from_object(lambda x: jax.nn.softmax(jnp.sum(x)), shape=SHAPE)


def test_a_function_with_parameters_of_a_file(module, tmp_path):
    np.savez(tmp_path / "weights.npz", w=WEIGHTS)
    assert_the_network(load_import_path(f"{module}:apply", shape=SHAPE, params=str(tmp_path / "weights.npz")))


@pytest.mark.parametrize(
    ("attribute", "match"),
    [
        ("nothing", "has no attribute 'nothing'"),
        ("number", "of type int, which is no function"),
        ("fails", "RuntimeError: no such weights$"),
        ("again", "a function of nothing once more"),
        ("Holder.other", "has no attribute 'Holder.other'"),
        ("Holder", "of type Holder, which is no function"),
    ],
)
def test_import_paths_that_lead_to_no_model(module, attribute, match):
    with pytest.raises(ModelError, match=match):
        load_import_path(f"{module}:{attribute}", shape=SHAPE)


def test_modules_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "made_broken.py").write_text("1 / 0\n")
    (tmp_path / "made_wanting.py").write_text("import made_missing_part\n")
    with pytest.raises(ModelError, match="no module 'made_missing'"):
        load_import_path("made_missing:net")
    with pytest.raises(ModelError, match="failed: ZeroDivisionError"):
        load_import_path("made_broken:net")
    with pytest.raises(ModelError, match="Importing 'made_wanting' failed: No module named 'made_missing_part'"):
        load_import_path("made_wanting:net")
    for spec in ("", "a", ":b", "a:"):
        with pytest.raises(ModelError, match="Expected"):
            load_import_path(spec)


def linen_params():
    return {"params": {"Dense_0": {"kernel": jnp.asarray(WEIGHTS)}}}


def test_flax_linen_modules(tmp_path):
    assert_the_network(from_object(Linen(), params=linen_params(), shape=SHAPE))
    assert_the_network(from_object(Linen(), params=linen_params()["params"], shape=SHAPE))
    assert_the_network(from_object((Linen(), linen_params()), shape=SHAPE))
    assert_the_network(from_object(lambda: (Linen(), linen_params()), shape=SHAPE))
    (tmp_path / "p.msgpack").write_bytes(flax.serialization.to_bytes(linen_params()))
    np.savez(tmp_path / "p.npz", **{"params/Dense_0/kernel": WEIGHTS})
    for name in ("p.msgpack", "p.npz"):
        assert_the_network(from_object(Linen(), params=tmp_path / name, shape=SHAPE))
    with pytest.raises(ModelError, match="give params"):
        from_object(Linen())
    with pytest.raises(ModelError, match="leave out params"):
        from_object((Linen(), linen_params()), params=linen_params())


def test_flax_nnx_modules_are_copied_in_inference_mode():
    module = Nnx()
    assert_the_network(from_object(module, shape=SHAPE))
    assert_the_network(from_object(lambda: module, shape=SHAPE))
    assert not module.dropout.deterministic
    with pytest.raises(ModelError, match="leave out params"):
        from_object(module, params={})


def test_equinox_modules_take_one_image():
    module = Equinox(jnp.asarray(WEIGHTS), eqx.nn.Dropout(0.5), jnp.arange(3))
    assert_the_network(from_object(module, shape=SHAPE, per_example=True))
    linear = eqx.nn.Linear(5, 3, key=jax.random.key(0))
    assert from_object(linear, shape=SHAPE, per_example=True).classes == 3
    with pytest.raises(ModelError, match="per_example"):
        from_object(linear, shape=SHAPE)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x @ np.ones((6, 3), np.float32), "cannot take images of shape"),
        (lambda x: jnp.sum(x, -1), r"got float32\[3\]"),
        (lambda x: (x, x), "must return one array of logits, got tuple"),
        (lambda x: jnp.argmax(x, -1, keepdims=True), r"got int32\[3, 1\]"),
        (lambda x: x[:2], r"got float32\[2, 5\]"),
    ],
)
def test_outputs_that_are_no_logits(function, match):
    with pytest.raises(ModelError, match=match):
        from_object(function, shape=SHAPE)


def test_parameter_files_that_are_none(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        read_params(tmp_path / "nothing.npz")
    with pytest.raises(ModelError, match=r"from \.msgpack or \.npz"):
        read_params(tmp_path / "weights.pkl")
    np.savez(tmp_path / "object.npz", w=np.array([{}], object))
    np.savez(tmp_path / "clash.npz", **{"a": WEIGHTS, "a/b": WEIGHTS})
    (tmp_path / "empty.msgpack").write_bytes(flax.serialization.to_bytes({}))
    (tmp_path / "text.msgpack").write_bytes(flax.serialization.to_bytes({"a": "b"}))
    whole = flax.serialization.to_bytes(linen_params())
    (tmp_path / "cut.msgpack").write_bytes(whole[:-5])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "clash.npz").read_bytes()[:-30])
    for name in ("object.npz", "clash.npz", "empty.msgpack", "text.msgpack", "cut.msgpack", "cut.npz"):
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            read_params(tmp_path / name)


def test_parameters_of_anything_but_numbers_are_refused(tmp_path):
    for name, array in {
        "complex": np.array([1j]),
        "text": np.array(["a"]),
        "date": np.array(["2020"], "M8[D]"),
    }.items():
        np.savez(tmp_path / f"{name}.npz", w=array)
        with pytest.raises(ModelError, match=rf"{name}\.npz holds no tree of arrays of numbers"):
            read_params(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ModelError, match="holds no tree of arrays"):
        read_params(tmp_path / "none.npz")


def test_a_parameter_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", w=np.zeros(10_000, np.float32))
    with pytest.raises(ModelError, match=r"40128 bytes to read, max_bytes allows 40127"):
        read_params(tmp_path / "w.npz", max_bytes=40127)
    assert read_params(tmp_path / "w.npz", max_bytes=40128)["w"].shape == (10_000,)
    (tmp_path / "w.msgpack").write_bytes(bytes(10))
    with pytest.raises(ModelError, match="max_bytes allows 9"):
        read_params(tmp_path / "w.msgpack", max_bytes=9)


def test_a_damaged_header_of_an_array_is_noticed(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, w=np.ones(5000, np.float32))  # more than is read ahead
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'shape': (5000,)", b"'shape': (500,) "))
    assert path.read_bytes() != content
    with pytest.raises(ModelError, match=r"w\.npy does not match its checksum"):
        read_params(path)


def test_parameters_of_a_device_are_not_read(tmp_path):
    (tmp_path / "endless.msgpack").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="is not a regular file"):
        read_params(tmp_path / "endless.msgpack")


def test_one_entrance(module, tmp_path):
    assert_the_network(load_model(f"{module}:pair", shape=SHAPE))
    path = tmp_path / "model.onnx"
    path.write_bytes(files.residual().SerializeToString())
    assert load_model(str(path), layout="nhwc").shape == (5, 5, 2)
    for options in ({"params": {}}, {"per_example": True}):
        with pytest.raises(ModelError, match="leave those options out"):
            load_model(str(path), **options)
    with pytest.raises(ModelError, match="is for ONNX files"):
        load_model(f"{module}:pair", layout="nhwc")
    for spec in ("model.pt", "", "not a module:net", "a:b:c"):
        with pytest.raises(ModelError, match="Expected a model as FILE"):
            load_model(spec)


def test_an_entry_that_hides_the_next_is_noticed(tmp_path):
    """Damage of the one length of a comment in the directory of a .npz file, for which Python has no word."""
    path = tmp_path / "params.npz"
    np.savez(path, **{"params/first": np.ones(3, np.float32), "params/last": np.zeros(2, np.float32)})
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\x01\x02")
    last = content.index(b"PK\x01\x02", first + 1)
    content[first + 32 : first + 34] = (content.index(b"PK\x05\x06") - last).to_bytes(2, "little")
    path.write_bytes(content)
    with np.load(path) as found:
        assert found.files == ["params/first"]
    with pytest.raises(ModelError, match="does not list as many arrays as it says"):
        read_params(path)
