import html.parser
import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import mixtrain_jax.report
from mixtrain_jax.certify import Curve, Evaluation, Threat
from mixtrain_jax.config import Config
from mixtrain_jax.data import Split
from mixtrain_jax.report import display as display_module
from mixtrain_jax.report import page
from mixtrain_jax.report.display import Display, seconds_left

SUMMARY = {
    "clean_accuracy": 0.75,
    "attacked_accuracy": 0.5,
    "verified_accuracy": 0.25,
    "eps": 0.1,
    "method": "ibp, crown",
    "attack": "PGD 5 steps x 2 starts",
    "seconds": 12.4,
    "seed": 3,
    "test_examples": 4,
    "verified_by": {"ibp": 0, "crown": 1},
    "params_sha256": "f00d" * 16,
    "versions": {"python": "3.11", "jax": "0.10"},
    "device": "cpu, 2 cores",
}


def row(step, **values):
    return {
        "step": step,
        "epoch": step / 10,
        "loss": 1.5,
        "clean_loss": 1.0,
        "robust_loss": 2.0,
        "relative_weight": 0.5,
        "eps": 0.05,
        "heldout_clean_accuracy": 0.875,
        "heldout_verified_accuracy": 0.375,
        "examples_per_second": 12345.6,
        "seconds_left": 65.0,
        **values,
    }


def displayed(act, *, terminal, width=80):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, _environ={}, highlight=False)
    with Display(console) as display:
        act(display)
    return console.file.getvalue()


def everything(display):
    display.note("A note.")
    for done in (10, 20, 30):
        display.progress("train", done, 30)
        display.row(row(done), last=done == 30)
    display.progress("certify by ibp", 0, 0)
    display.progress("certify by ibp", 4, 4)
    display.summary(SUMMARY)


def test_outside_a_terminal_lines_are_plain():
    text = displayed(everything, terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.splitlines()[0] == "A note."
    assert max(map(len, text.splitlines())) <= 80


def test_outside_a_terminal_long_work_is_told_now_and_then(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(display_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def act(display):
        display.note("Measuring.")
        display._printed = clock[0]
        for done in range(8):
            clock[0] += 10
            display.progress("certify by ibp", done, 8)
            display.progress("train", done, 8)

    assert displayed(act, terminal=False).splitlines() == [
        "Measuring.",
        "certify by ibp: 3 of 8",
        "certify by ibp: 7 of 8",
    ]


def test_outside_a_terminal_rows_are_spared_but_for_the_first_and_the_last():
    lines = displayed(everything, terminal=False).splitlines()
    assert lines[1].split() == ["epoch", "loss", "clean", "verified", "weight", "eps", "examples/s", "left"]
    assert lines[2].split() == ["1.0", "1.5000", "87.5%", "37.5%", "0.500", "0.0500", "12,346", "1:05"]
    assert lines[3].split()[0] == "3.0"
    assert len(lines[1]) == len(lines[2]) == len(lines[3])


def test_outside_a_terminal_a_row_comes_after_some_quiet_seconds(monkeypatch):
    clock = iter([100.0, 100.0, 101.0, 105.5, 105.5, 106.0])
    monkeypatch.setattr(display_module.time, "monotonic", lambda: next(clock, 106.0))

    def act(display):
        for step in (10, 20, 30, 40):
            display.row(row(step))

    lines = displayed(act, terminal=False).splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "1.0", "3.0"]


def test_in_a_terminal_every_row_and_a_bar_are_shown():
    text = displayed(everything, terminal=True)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert [f" {epoch} " in plain for epoch in ("1.0", "2.0", "3.0")] == [True] * 3
    assert "train" in plain
    assert re.search(r"train .* \d+/30 ", plain)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_summary_shows_the_three_accuracies_at_any_width(terminal, width):
    text = displayed(lambda display: display.summary(SUMMARY), terminal=terminal, width=width)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert max(map(len, plain.splitlines())) <= width
    if width > 20:
        for name, value in (("clean", "75.0%"), ("attacked", "50.0%"), ("verified", "25.0%")):
            assert re.search(rf"{name} +│ +{value}", plain)
        assert "4 test images, l-infinity eps 0.1" in plain


@pytest.mark.parametrize("terminal", [False, True])
def test_everything_is_shown_at_width_20_without_trouble(terminal):
    assert "A note." in displayed(everything, terminal=terminal, width=20)


def test_notes_are_printed_as_they_are_and_not_broken():
    note = "checkpoint 3 is damaged ([bold]x[/bold]); moved to " + "folder/" * 30
    assert displayed(lambda display: display.note(note), terminal=False) == note + "\n"


def test_nothing_is_left_of_the_bar_after_an_error():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={})

    def fail():
        with Display(console) as display:
            display.progress("train", 1, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert console.file.getvalue().count("\x1b[?25l") == console.file.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_seconds_left_in_words(seconds, words):
    assert seconds_left(seconds) == words


def rendered(summary=SUMMARY, rows=None, eps=0.1, config=None):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(4, 8, 8, 1)).astype(np.float32)
    split = Split(images, np.arange(4, dtype=np.int32))
    flags = np.array([True, True, True, False]), np.array([True, True, False, False]), np.array([True] + [False] * 3)
    evaluation = Evaluation(
        threat=Threat(eps),
        seconds={"PGD": 1.0, "crown": 2.0},
        predictions=np.array([0, 1, 2, 9]),
        clean=flags[0],
        attacked=flags[1],
        verified=flags[2],
        margin=np.ones(4),
        proved_by=np.array(["crown", "", "", ""]),
        broken_by=np.array(["", "", "PGD", ""]),
        adversarial=images.copy(),
        seen_as=np.array([0, 1, 3, 9]),
    )
    grid = np.linspace(0, 2.5 * eps, 5)
    curve = Curve(grid, np.full(5, 0.75), np.linspace(0.75, 0.3, 5), np.linspace(0.75, 0, 5), np.array([0.2, 0, 0, -1]))
    rows = [row(10), row(20), row(30)] if rows is None else rows
    return page.render(config or Config(), {**summary, "eps": eps}, rows, evaluation, curve, split)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def test_the_page_has_the_numbers_the_plots_and_the_config():
    found = Page(rendered())
    assert found.tags.count("svg") == 4
    for words in ("75.0%", "50.0%", "25.0%", "0 by ibp, 1 by crown", "4 test images", "seed 3", "12 s", "f00d" * 16):
        assert words in found.text
    assert all(f"{name}{value}" in found.text for name, value in Config().flags().items())
    assert all(f"{name}{value}" in found.text for name, value in SUMMARY["versions"].items())


def test_the_page_needs_nothing_beside_it():
    text = rendered()
    found = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    fetched = [value for _, name, value in found.attributes if name in ("src", "href", "xlink:href", "data", "srcset")]
    assert all(value.startswith(("#", "data:")) for value in fetched)
    assert all(target.startswith("#") for target in re.findall(r"url\([\"']?([^)]*)\)", text))
    assert "@import" not in text


def test_images_are_framed_by_what_is_known_of_them():
    found = Page(rendered())
    for words in ("proved 0", "1, open", "2, broken", "9, is 3"):
        assert words in found.text


def test_the_same_run_gives_the_same_page():
    assert rendered() == rendered()


@pytest.fixture
def without_matplotlib(monkeypatch):
    monkeypatch.delitem(sys.modules, "mixtrain_jax.report.plots", raising=False)
    monkeypatch.delattr(mixtrain_jax.report, "plots", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_page_has_the_numbers_and_says_how_to_get_the_plots():
    found = Page(rendered())
    assert "svg" not in found.tags
    assert "pip install matplotlib" in found.text
    for words in ("75.0%", "50.0%", "25.0%", "0 by ibp, 1 by crown", "f00d" * 16):
        assert words in found.text


def test_another_missing_module_is_not_mistaken_for_matplotlib(monkeypatch):
    monkeypatch.delitem(sys.modules, "mixtrain_jax.report.plots", raising=False)
    monkeypatch.delattr(mixtrain_jax.report, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "mixtrain_jax.certify", None)
    with pytest.raises(ModuleNotFoundError, match="certify"):
        rendered()


@pytest.mark.usefixtures("without_matplotlib")
def test_what_comes_from_outside_is_escaped():
    evil = "<script>alert('&')</script>"
    summary = {
        **SUMMARY,
        "attack": evil,
        "device": evil,
        "params_sha256": evil,
        "versions": {evil: evil},
        "verified_by": {evil: 1},
    }
    found = Page(rendered(summary))
    assert "script" not in found.tags
    assert found.text.count(evil) == 6


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_the_page_of_an_extreme_radius_renders(eps):
    assert Page(rendered(eps=eps)).tags.count("svg") == 4


@pytest.mark.parametrize(
    "rows", [[row(10)], [row(10, robust_loss=0.0), row(20, robust_loss=0.0)]], ids=["one", "zeros"]
)
def test_the_page_of_few_rows_or_no_robust_loss_renders(rows):
    assert Page(rendered(rows=rows)).tags.count("svg") == 4
