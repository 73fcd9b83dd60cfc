import dataclasses
import json
import math
import re
import typing
from pathlib import Path

import pytest

from mixtrain_jax import config as config_lib
from mixtrain_jax import flat, schema
from mixtrain_jax.config import CHOICES, Config, available, load, of_flags, of_run, of_tables
from mixtrain_jax.errors import ConfigError
from mixtrain_jax.losses import Attacked, Bounded, Clean
from mixtrain_jax.objectives import RECIPES, Recipe, recipe
from mixtrain_jax.schema import Range

UNLIMITED = Range(0).high
CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = [(table, name) for table, choice in CHOICES.items() for name in choice.members]


def tables():
    """Every table: its flags' prefix, the name it is chosen by or "", and its defaults."""
    for field in dataclasses.fields(Config):
        if field.name in CHOICES:
            yield from ((field.name, name, member) for name, member in CHOICES[field.name].members.items())
        elif field.name != "seed":
            yield field.name, "", field.default


class Field(typing.NamedTuple):
    """A value of a config, and what makes a config have it."""

    flag: str
    chosen: dict
    hint: typing.Any
    text: str

    def __str__(self):
        return "-".join([*self.chosen.values(), self.flag])

    @property
    def range(self):
        return self.hint.__metadata__[0] if typing.get_origin(self.hint) is typing.Annotated else None

    @property
    def kind(self):
        return typing.get_args(self.hint)[0] if self.range else self.hint

    def config(self, **values):
        """A config of this value, by the keyword `value`, and of others by their flags."""
        value = {self.flag: values.pop("value")} if "value" in values else {}
        return of_flags(
            {
                "training.batch_size": 1000,
                "objective.examples": 1,
                "threat.norm": "l2",
                **self.chosen,
                **value,
                **values,
            }
        )

    def get(self, config):
        return config.flags()[self.flag]

    def other(self):
        """A valid value that is not the default; None where there is only one."""
        value = self.get(self.config())
        if self.range:
            return self.kind(self.range.low if value != self.range.low else self.range.low + 1)
        if isinstance(value, bool):
            return not value
        if isinstance(value, list):
            return tuple(value[:-1])
        return next((choice for choice in typing.get_args(self.hint) if choice != value), None)


FIELDS = [
    Field(
        f"{table}.{name}", {f"{table}.name": chosen} if chosen else {}, hint, schema.documentation(member).get(name, "")
    )
    for table, chosen, member in tables()
    for name, hint in schema.hints(member).items()
]
FIELDS += [
    Field(
        "seed", {}, typing.get_type_hints(Config, include_extras=True)["seed"], schema.documentation(Config())["seed"]
    )
]
RANGES = [field for field in FIELDS if field.range]
EACH, NUMBERS = (pytest.mark.parametrize("field", some, ids=str) for some in (FIELDS, RANGES))
WHOLE = [field for field in RANGES if field.kind is float and field.range.high >= 1]
FLOATS = pytest.mark.parametrize("field", [field for field in RANGES if field.kind is float], ids=str)


@pytest.fixture
def write(tmp_path):
    def written(text, name="mine"):
        (tmp_path / f"{name}.toml").write_text(text)
        return load(name, tmp_path)

    return written


def test_a_file_overrides_the_defaults_it_names(write):
    text = '[model]\nname = "small"\nwidth = 32\n[threat]\neps = 0.25\n[certify]\nbounds = ["ibp", "crown"]\n'
    values = {"model.name": "small", "model.width": 32, "threat.eps": 0.25, "certify.bounds": ("ibp", "crown")}
    assert write(text) == of_flags(values)
    assert write(text) == Config(
        model=config_lib.Model("small", 32),
        threat=config_lib.Perturbation(0.25),
        certify=config_lib.Certify(("ibp", "crown")),
    )


def test_an_empty_file_is_the_defaults(write):
    assert write("") == Config()


@pytest.mark.parametrize("name", available(CONFIGS))
def test_every_experiment_that_is_shipped_loads(name):
    assert isinstance(load(name, CONFIGS), Config)


def test_a_path_to_a_file_is_loaded_from_anywhere(tmp_path):
    path = tmp_path / "elsewhere.toml"
    path.write_text("[model]\nwidth = 7")
    assert load(str(path), CONFIGS).model.width == 7


def test_every_available_name_loads(tmp_path):
    (tmp_path / "eps0.2.toml").write_text("[threat]\neps = 0.2")
    assert [load(name, tmp_path).threat.eps for name in available(tmp_path)] == [0.2]


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nepoch = 3", "unknown field 'training.epoch'; did you mean 'epochs'?"),
        ("[trainin]\nepochs = 3", "unknown field 'trainin'; did you mean 'training'?"),
        ("[objective]\nsteps = 3", "unknown field 'objective.steps'"),  # of pgd, not of mixtrain
        ("model = 3\n[data]\ncrop = 1", "model must be a table, got 3"),
        ("epochs = 3\n[data]\ncrop = 1", "unknown field 'epochs'; it is training.epochs now."),
        ("[objective]\nname = 3", "objective.name must be one of mixtrain, robust"),
    ],
)
def test_unknown_fields_and_tables_are_refused(write, text, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        write(text)
    assert "mine.toml: " in str(error.value)


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
    with pytest.raises(ConfigError, match="name must be one of"):
        write(f"[model]\nname = \"__import__('os').mkdir('{mark}')\"")
    assert not mark.exists()


@EACH
@pytest.mark.parametrize("value", [None, "wrong", {"a": 1}, ["wrong"], b"3", math.nan], ids=str)
def test_values_of_a_wrong_type_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field.flag} must be"):
        field.config(value=value)


@NUMBERS
@pytest.mark.parametrize("value", [True, False])
def test_a_bool_is_no_number(field, value):
    with pytest.raises(ConfigError, match=f"{field.flag} must be of type (int|float), got {value}"):
        field.config(value=value)


def test_a_number_is_no_bool():
    with pytest.raises(ConfigError, match=r"objective\.replace must be of type bool, got 1"):
        of_flags({"objective.replace": 1})


@pytest.mark.parametrize("field", [field for field in RANGES if field.kind is int], ids=str)
def test_an_integer_field_refuses_floats(field):
    with pytest.raises(ConfigError, match=rf"{field.flag} must be of type int, got 2\.0"):
        field.config(value=2.0)


@NUMBERS
def test_both_limits_are_allowed_and_what_lies_beyond_is_refused(field):
    low, high = field.range
    beyond = {int: 1, float: 1e-6}[field.kind]
    limits = f"at least {low} and finite" if high == UNLIMITED else f"{low} to {high}"
    most = {"training.batch_size": 10**6} if field.flag != "training.batch_size" else {}
    assert field.get(field.config(value=low)) == low
    with pytest.raises(ConfigError, match=f"{field.flag} must be a number, {limits}; got"):
        field.config(value=low - beyond)
    if high < UNLIMITED:
        assert field.get(field.config(value=high, **most)) == high
        with pytest.raises(ConfigError, match=f"{field.flag} must be a number, {limits}; got"):
            field.config(value=high + beyond)


@FLOATS
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_that_are_not_finite_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field.flag} must be a number"):
        field.config(value=value)


@NUMBERS
@pytest.mark.parametrize("sign", [1, -1])
def test_absurdly_large_integers_are_refused(field, sign):
    with pytest.raises(ConfigError):
        field.config(value=sign * 10**400)


@EACH
def test_every_field_has_help_that_names_its_limits(field):
    assert field.text[:1].isupper() or field.text[:2] in ("n:", "k:")
    assert field.text.endswith(".")
    assert field.hint not in (int, float)  # a number has a range
    if field.range:
        low, high = field.range
        end = {"objective.examples": "batch_size"}.get(field.flag, high)
        assert field.text.endswith(f"at least {low}." if end == UNLIMITED else f"{low} to {end}.")


def test_nan_and_lists_in_a_file_are_refused(write):
    with pytest.raises(ConfigError, match=r"mine\.toml: threat\.eps must be a number, 0 to 100; got nan"):
        write("[threat]\neps = nan")
    with pytest.raises(ConfigError, match=r"mine\.toml: model\.width must be of type int"):
        write("[model]\nwidth = [1, 2]")
    with pytest.raises(ConfigError, match=r"mine\.toml: certify\.bounds must be a list, got 'ibp'"):
        write('[certify]\nbounds = "ibp"')


def test_an_unknown_choice_comes_with_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.name must be one of mlp, .*, got 'smal'; did you mean 'small'"):
        of_flags({"model.name": "smal"})
    with pytest.raises(ConfigError, match=r"bounds must be one of ibp, .*, got 'symbol'; did you mean 'symbolic'"):
        of_flags({"certify.bounds": ("ibp", "symbol")})
    with pytest.raises(ConfigError, match=r"mixing\.name must be one of .*'convx'; did you mean 'convex'"):
        of_flags({"mixing.name": "convx"})


def test_certify_wants_a_bound():
    with pytest.raises(ConfigError, match=r"certify\.bounds must name at least one"):
        of_flags({"certify.bounds": ()})


def test_k_beyond_n_is_refused():
    values = {"objective.examples": 32, "training.batch_size": 32}
    assert of_flags(values).objective.examples == 32
    with pytest.raises(ConfigError, match=r"examples must be at most training\.batch_size \(k of n\), got 33 of 32"):
        of_flags({**values, "objective.examples": 33})


@pytest.mark.parametrize(("table", "name"), NAMES)
def test_json_holds_every_field_in_order_and_reads_back(table, name):
    config = of_flags({f"{table}.name": name, "certify.bounds": ("ibp",)})
    written = config.to_json()
    assert list(written) == [field.name for field in dataclasses.fields(Config)]
    assert written[table]["name"] == name
    assert json.loads(json.dumps(written)) == written
    assert of_tables(written) == config


def test_a_recipe_has_the_name_from_which_it_differs_least():
    assert of_flags({"objective.name": "robust", "objective.examples": 16}).name_of("objective") == "mixtrain"
    assert Config(objective=Recipe(Bounded("crown"), examples=8)).name_of("objective") == "mixtrain"
    assert Config(objective=Recipe(Bounded("crown"))).name_of("objective") == "robust"


def test_the_digest_is_eight_hexadecimal_digits_and_stable():
    assert len(Config().digest()) == 8
    assert int(Config().digest(), 16) >= 0
    assert Config().digest() == Config().digest() == of_tables(Config().to_json()).digest()


def test_the_digest_does_not_know_the_defaults(monkeypatch):
    """So a field that is new moves no folder."""

    @dataclasses.dataclass(frozen=True)
    class Convex(config_lib.RULES.members["convex"].__class__):
        novel: int = 3

    config = of_flags({"mixing.name": "convex", "mixing.share": 0.25, "training.epochs": 7})
    before = config.digest()
    monkeypatch.setitem(config_lib.RULES.members, "convex", Convex())
    later = of_flags({"mixing.name": "convex", "mixing.share": 0.25, "training.epochs": 7})
    assert later.flags()["mixing.novel"] == 3
    assert later.digest() == before
    assert of_flags({"mixing.novel": 4}, later).digest() != before


@pytest.mark.parametrize("field", [field for field in FIELDS if field.other() is not None], ids=str)
def test_the_digest_changes_with_every_field(field):
    assert field.config(value=field.other()).digest() != field.config().digest()


def test_every_field_has_another_value():
    assert [str(field) for field in FIELDS if field.other() is None] == []


@pytest.mark.parametrize("field", WHOLE, ids=str)
def test_equal_configs_have_equal_digests(field):
    value = field.range.high // 1 if field.range.high < 9 else 1
    whole, real = (field.config(value=kind(value)) for kind in (int, float))
    assert whole == real
    assert whole.digest() == real.digest()


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 3


def test_available_names_are_sorted_stems(tmp_path):
    for name in ("b.toml", "a.toml", "c.txt"):
        (tmp_path / name).write_text("")
    assert config_lib.available(tmp_path) == ["a", "b"]


# --- tables by import path ------------------------------------------------------------------------------------------


def test_a_loss_of_ones_own_is_a_table_by_its_import_path(write):
    config = write('[objective]\nname = "mixtrain_jax.losses:Attacked"\nsteps = 3\nexamples = 4\n')
    assert config.objective == Recipe(Attacked(3), examples=4)


def test_a_file_of_a_run_is_read_without_running_code_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    tables = {**Config().to_json(), "objective": {"name": "hostile:Loss", "ratio": 0.4}}
    (tmp_path / "config.json").write_text(json.dumps(tables))
    found = of_run(tmp_path)
    assert found.name_of("objective") == "hostile:Loss"
    assert found.flags()["objective.ratio"] == 0.4
    assert found.to_json() == tables
    (tmp_path / "config.json").write_text(json.dumps({**tables, "objective": {"name": ["hostile:Loss"]}}))
    with pytest.raises(ConfigError, match=r"objective\.name must be one of mixtrain, .* got \['hostile:Loss'\]"):
        of_run(tmp_path)


# --- version 0.1 ----------------------------------------------------------------------------------------------------


def test_a_file_of_version_0_1_is_refused_with_its_new_form(write, tmp_path):
    old = 'trainer = "pgd"\ntrain_attack_steps = 3\nbound = "crown"\n'
    old += 'mixing = "convex"\nshare = 1.0\nlearning_rate = 0.1\n'
    with pytest.raises(ConfigError, match=r"has the form of version 0\.1") as error:
        write(old)
    new = str(error.value).split("\n\n", 1)[1]
    values = {"mixing.name": "convex", "mixing.share": 1.0, "optimizer.learning_rate": 0.1}
    assert write(new, "new") == of_flags({**values, "objective.name": "pgd", "objective.steps": 3})


def test_a_run_of_version_0_1_is_read(tmp_path):
    old = {
        "data": "mnist",
        "model": "small",
        "trainer": "mixtrain",
        "robust_examples": 8,
        "eps": 0.3,
        "mixing": "authors",
    }
    old |= {"ramp_shape": "smooth", "certify": ["ibp"], "seed": 3, "warmup": 0.1, "share": 0.5, "train_attack_steps": 9}
    (tmp_path / "config.json").write_text(json.dumps(old))
    values = {"data.name": "mnist", "model.name": "small", "objective.examples": 8, "threat.eps": 0.3}
    values |= {"mixing.name": "staircase", "radius.name": "smooth", "certify.bounds": ("ibp",), "seed": 3}
    assert of_run(tmp_path) == of_flags({**values, "schedule.warmup": 0.1})


def test_a_clean_loss_that_weighed_nothing_is_no_term():
    found = of_tables(flat.tables({"trainer": "robust", "mixing": "convex", "share": 1.0}))
    assert found.objective == recipe("robust", clean=False)
    assert list(found.objective.objective()) == ["robust"]


def test_every_flag_of_the_translation_exists():
    assert {field.flag for field in FIELDS} | {f"{table}.name" for table in CHOICES} >= set(flat.FLAGS.values())


def test_every_name_has_terms_of_its_own():
    terms = {name: list(member.objective()) for name, member in RECIPES.members.items()}
    assert terms["standard"] == ["clean"]
    assert terms["pgd"] == ["attacked"]
    assert terms["robust"] == terms["mixtrain"] == ["clean", "robust"]
    assert Recipe(Clean(), clean=True).objective() == Recipe(Clean(), clean=False).objective()
