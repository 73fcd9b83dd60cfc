import ast
import dataclasses
import inspect
import itertools
import json
import math
import typing
from pathlib import Path

import pytest

from mixtrain_jax import config as config_lib
from mixtrain_jax.config import Config, Range, available, load
from mixtrain_jax.errors import ConfigError

UNLIMITED = Range(0).high
CONFIGS = Path(__file__).parent.parent / "configs"
HINTS = typing.get_type_hints(Config, include_extras=True)
RANGES = {name: hint.__metadata__[0] for name, hint in HINTS.items() if typing.get_origin(hint) is typing.Annotated}
FIELDS = [field.name for field in dataclasses.fields(Config)]


def kind(name):
    hint = HINTS[name]
    return typing.get_args(hint)[0] if name in RANGES else hint


def configured(**values):
    """A config of these values among others that don't get in their way."""
    return Config(**{"mixing": "convex", "robust_examples": 1, **values})


def other(name):
    """A valid value that `configured()` does not have; None where there is only one."""
    value = getattr(configured(), name)
    if name in RANGES:
        return kind(name)(RANGES[name].low if value != RANGES[name].low else RANGES[name].low + 1)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[:1]
    return next((choice for choice in typing.get_args(HINTS[name]) if choice != value), None)


def documentation():
    """The string below each field of the class."""
    body = ast.parse(inspect.getsource(Config)).body[0].body
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


@pytest.fixture
def write(tmp_path):
    def written(text, name="mine"):
        (tmp_path / f"{name}.toml").write_text(text)
        return load(name, tmp_path)

    return written


def test_a_file_overrides_the_defaults_it_names(write):
    config = write('model = "small"\nwidth = 32\neps = 0.25\nreplace = true\ncertify = ["ibp", "crown"]\n')
    assert config == dataclasses.replace(
        Config(), model="small", width=32, eps=0.25, replace=True, certify=("ibp", "crown")
    )


def test_an_empty_file_is_the_defaults(write):
    assert write("") == Config()


@pytest.mark.parametrize("name", available(CONFIGS))
def test_every_experiment_that_is_shipped_loads(name):
    assert isinstance(load(name, CONFIGS), Config)


def test_a_path_to_a_file_is_loaded_from_anywhere(tmp_path):
    path = tmp_path / "elsewhere.toml"
    path.write_text("width = 7")
    assert load(str(path), CONFIGS).width == 7


def test_every_available_name_loads(tmp_path):
    (tmp_path / "eps0.2.toml").write_text("eps = 0.2")
    assert [load(name, tmp_path).eps for name in available(tmp_path)] == [0.2]


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(ConfigError, match=r"There is no config 'digist'; did you mean 'digits'.*Known: .*digits"):
        load("digist", CONFIGS)


def test_a_name_like_no_other_comes_with_those_known():
    with pytest.raises(ConfigError, match=r"There is no config 'xyzzy'\. Known: .*digits"):
        load("xyzzy", CONFIGS)


@pytest.mark.parametrize("name", ["", "missing.toml", "sub/digits"])
def test_names_of_nothing_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"There is no config .*Known: none"):
        load(name, tmp_path)


def test_an_unknown_field_comes_with_the_nearest(write):
    with pytest.raises(ConfigError, match=r"mine\.toml: unknown field 'epoch'; did you mean 'epochs'\?"):
        write("epoch = 3")


def test_a_table_is_an_unknown_field(write):
    with pytest.raises(ConfigError, match=r"mine\.toml: unknown field 'train'"):
        write("[train]\nepochs = 3")


@pytest.mark.parametrize("text", ["width 3", "width = ", "width = 3\nwidth = 4", "width = [1", 'model = "cnn'])
def test_invalid_toml_is_refused(write, text):
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML"):
        write(text)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"width = 3 # \xff\xfe")
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML"):
        load("mine", tmp_path)


@pytest.mark.parametrize(
    "text", ["__import__('os').{call}", "width = __import__('os').{call}", "width = !!python {call}"]
)
def test_a_file_never_executes_code(write, tmp_path, text):
    mark = tmp_path / "executed"
    with pytest.raises(ConfigError, match="not valid TOML"):
        write(text.format(call=f"mkdir('{mark}')"))
    with pytest.raises(ConfigError, match="model must be one of"):
        write(f"model = \"__import__('os').mkdir('{mark}')\"")
    assert not mark.exists()


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, "wrong", {"a": 1}, [1], b"3", math.nan], ids=str)
def test_values_of_a_wrong_type_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        configured(**{name: value})


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [True, False])
def test_a_bool_is_no_number(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be of type (int|float), got {value}"):
        configured(**{name: value})


def test_a_number_is_no_bool():
    with pytest.raises(ConfigError, match="replace must be of type bool, got 1"):
        Config(replace=1)


@pytest.mark.parametrize("name", [name for name in RANGES if kind(name) is int])
def test_an_integer_field_refuses_floats(name):
    with pytest.raises(ConfigError, match=rf"{name} must be of type int, got 2\.0"):
        configured(**{name: 2.0})


@pytest.mark.parametrize("name", [name for name in RANGES if kind(name) is float])
def test_a_float_field_takes_integers(name):
    assert getattr(configured(**{name: int(RANGES[name].low)}), name) == RANGES[name].low


@pytest.mark.parametrize("name", RANGES)
def test_both_limits_are_allowed_and_what_lies_beyond_is_refused(name):
    low, high = RANGES[name]
    beyond = {int: 1, float: 1e-6}[kind(name)]
    limits = f"at least {low} and finite" if high == UNLIMITED else f"{low} to {high}"
    batch = {"batch_size": 10**6} if name in ("robust_examples", "microbatches") else {}
    assert getattr(configured(**{name: low, **batch}), name) == low
    with pytest.raises(ConfigError, match=f"{name} must be a number, {limits}; got"):
        configured(**{name: low - beyond})
    if high < UNLIMITED:
        assert getattr(configured(**{name: high, **batch}), name) == high
        with pytest.raises(ConfigError, match=f"{name} must be a number, {limits}; got"):
            configured(**{name: high + beyond})


@pytest.mark.parametrize("name", [name for name in RANGES if kind(name) is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_that_are_not_finite_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be a number"):
        configured(**{name: value})


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("sign", ["", "-"])
def test_absurdly_large_integers_are_refused(write, name, sign):
    with pytest.raises(ConfigError):
        write(f"{name} = {sign}1{'0' * 400}")


@pytest.mark.parametrize("name", RANGES)
def test_the_help_of_a_ranged_field_names_its_limits(name):
    low, high = RANGES[name]
    end = {"robust_examples": "batch_size"}.get(name, high)
    expected = f"at least {low}." if end == UNLIMITED else f"{low} to {end}."
    assert documentation()[name].endswith(expected)


def test_every_field_has_help_and_a_range_if_it_is_a_number():
    assert set(documentation()) == set(FIELDS)
    assert {name for name in FIELDS if HINTS[name] in (int, float)} == set()
    assert all(isinstance(limits, Range) for limits in RANGES.values())


def test_nan_and_lists_in_a_file_are_refused(write):
    with pytest.raises(ConfigError, match=r"mine\.toml: eps must be a number, 0 to 1; got nan"):
        write("eps = nan")
    with pytest.raises(ConfigError, match=r"mine\.toml: width must be of type int"):
        write("width = [1, 2]")
    with pytest.raises(ConfigError, match=r"mine\.toml: certify must be a list, got 'ibp'"):
        write('certify = "ibp"')


def test_an_unknown_choice_comes_with_the_nearest():
    with pytest.raises(ConfigError, match=r"model must be one of mlp, small, .*, got 'smal'; did you mean 'small'"):
        Config(model="smal")
    with pytest.raises(ConfigError, match=r"certify must be one of ibp, .*, got 'symbol'; did you mean 'symbolic'"):
        Config(certify=("ibp", "symbol"))


def test_certify_wants_a_bound():
    with pytest.raises(ConfigError, match="certify must name at least one"):
        Config(certify=())


def test_k_beyond_n_is_refused():
    assert Config(robust_examples=32, batch_size=32).robust_examples == 32
    with pytest.raises(ConfigError, match=r"robust_examples must be at most batch_size \(k of n\), got 33 of 32"):
        Config(robust_examples=33, batch_size=32)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_constrained_mixing_wants_a_share_strictly_between_0_and_1(share):
    assert Config(mixing="convex", share=share).share == share
    with pytest.raises(ConfigError, match=f"share must lie strictly between 0 and 1 .* got {share}"):
        Config(mixing="constrained", share=share)


@pytest.mark.parametrize("values", [{}, {"certify": ("ibp",), "replace": True, "eps": 0.25}], ids=str)
def test_json_holds_every_field_in_order(values):
    config = Config(**values)
    written = config.to_json()
    assert list(written) == FIELDS
    assert json.loads(json.dumps(written)) == written
    assert Config(**{**written, "certify": tuple(written["certify"])}) == config


def test_the_digest_is_eight_hexadecimal_digits_and_stable():
    assert len(Config().digest()) == 8
    assert int(Config().digest(), 16) >= 0
    assert Config().digest() == Config().digest() == Config(**dataclasses.asdict(Config())).digest()


@pytest.mark.parametrize("name", [name for name in FIELDS if other(name) is not None])
def test_the_digest_changes_with_every_field(name):
    assert configured(**{name: other(name)}).digest() != configured().digest()


def test_every_field_has_another_value():
    assert [name for name in FIELDS if other(name) is None] == []


@pytest.mark.parametrize("name", [name for name in RANGES if kind(name) is float])
def test_equal_configs_have_equal_digests(name):
    low = RANGES[name].low
    whole, real = configured(**{name: int(low)}), configured(**{name: float(low)})
    assert whole == real
    assert whole.digest() == real.digest()


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().eps = 0.5


def test_available_names_are_sorted_stems(tmp_path):
    for name in ("b.toml", "a.toml", "c.txt"):
        (tmp_path / name).write_text("")
    assert config_lib.available(tmp_path) == ["a", "b"]
