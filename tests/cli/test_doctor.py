import json
import subprocess
import sys
from importlib import metadata

import pytest
import typer
from typer.testing import CliRunner, Result

import kexue
from kexue.cli import doctor as module
from kexue.cli.doctor import doctor, examination, model_cache
from kexue.report import environment as environment_module
from kexue.report.environment import environment, versions


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor)
    return app


@pytest.fixture
def without(monkeypatch):
    """Make distributions look as if they were not installed."""

    def hide(*names: str) -> None:
        real = metadata.version

        def version(name: str) -> str:
            if name in names:
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(environment_module.metadata, "version", version)

    return hide


def run(app: typer.Typer, *arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_the_environment_survives_json_and_names_the_versions():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["kexue"] == kexue.__version__
    assert found["torch"].split("+")[0] == metadata.version("torch").split("+")[0]
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert found["cores"] >= 1
    assert isinstance(found["bf16"], bool)


def test_versions_of_packages_that_are_not_there_are_none():
    assert versions(("no-such-distribution-at-all",)) == {"no-such-distribution-at-all": None}


def test_the_report_shows_machine_packages_settings_and_verdict(app):
    result = run(app)
    assert result.exit_code == 0
    for heading in ("machine", "packages", "settings", "verdict"):
        assert f"{heading}\n" in result.stdout
    assert metadata.version("torch") in result.stdout
    assert "the core works" in result.stdout


def test_json_is_one_object_with_the_same_facts(app):
    found = json.loads(run(app, "--json").stdout)
    assert found["usable"] is True
    assert found["environment"]["kexue"] == kexue.__version__
    assert set(found["extras"]) == {"nlp", "lab", "shuffle", "ray", "web"}


def test_a_missing_optional_package_names_the_extra_and_is_no_failure(app, without):
    without("gradio", "transformers")
    result = run(app)
    assert result.exit_code == 0
    assert 'missing: pip install "kexue[web]"' in result.stdout
    assert 'training and pretrained models: needs pip install "kexue[nlp]"' in result.stdout


def test_a_missing_core_package_fails_and_says_how_to_mend_it(app, without):
    without("scipy")
    result = run(app)
    assert result.exit_code == 1
    assert "scipy is missing" in result.stdout
    assert "mend it with: pip install" in result.stdout


def test_a_torch_that_cannot_be_imported_is_told_not_raised(app, monkeypatch):
    def broken() -> dict[str, object]:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(environment_module, "environment", broken)
    result = run(app)
    assert result.exit_code == 1
    assert "libgomp.so.1" in result.stdout


def test_the_hub_settings_are_shown_and_explained(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = examination()
    assert found.settings["HF_HUB_OFFLINE"] == "1"
    assert any(line.startswith("offline:") for line in found.verdict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert "models and data come from https://mirror.example" in examination().verdict


def test_the_cache_folder_need_not_exist_yet(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there"))
    cache = model_cache()
    assert cache.folder == str(tmp_path / "not" / "there")
    assert cache.writable
    assert cache.free_gb >= 0
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_a_file_is_not_writable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    assert not model_cache().writable
    assert any("point HF_HOME" in line for line in examination().verdict)


def test_the_packages_named_are_those_of_the_project_file():
    import tomllib
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {requirement.split(">")[0].split("[")[0] for requirement in requirements}

    assert set(module.CORE) == names(project["dependencies"])
    for extra, packages in module.EXTRAS.items():
        assert set(packages) == names(project["optional-dependencies"][extra])


def test_help_shows_an_example(app):
    assert "Example: kexue doctor" in run(app, "--help").stdout


def test_asking_for_the_command_does_not_import_torch():
    code = "import sys, kexue.cli.doctor; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
