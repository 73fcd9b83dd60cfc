import jax
import pytest

from mixtrain_jax.compilation import keep_compiled


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home of one's own on a machine with an accelerator, where jax may keep programs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield tmp_path
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_in_the_cache_of_the_user(home):
    folder = home / ".cache" / "mixtrain_jax" / "xla"
    assert keep_compiled() == folder
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_environment_says_where_caches_are(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert keep_compiled() == home / "elsewhere" / "mixtrain_jax" / "xla"
    assert not (home / ".cache").exists()


@pytest.mark.parametrize("named", ["", "mine"])
def test_what_the_user_configured_stays(home, named):
    jax.config.update("jax_compilation_cache_dir", named)
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir == named
    assert list(home.iterdir()) == []


def test_nothing_is_kept_where_jax_is_told_so_or_on_cpu(home, monkeypatch):
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_compiled() is None
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert keep_compiled() is None
    assert list(home.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_done_without(home, monkeypatch):
    (home / ".cache").write_text("a file")
    assert keep_compiled() is None
    (home / ".cache").unlink()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None
