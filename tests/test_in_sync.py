"""What is generated must equal its source: the package, README.md, the site's lists, dvc.yaml's parameters."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT
from notebooks import OLDEST, directives, listed, notebooks, readme, runs_on_oldest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ALL = [pytest.param(f, id=f.stem) for f in notebooks()]
NUMBERED = {f.stem: f for f in notebooks() if re.match(r"\d\d[a-z]?_", f.stem)}


def stages():
    "Stages of dvc.yaml by name."
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf8"))["stages"]


def side_stages():
    "Stages with a DVC file of their own, which a plain `dvc repro` leaves alone, by name."
    from gnn_ecommerce.core import SIDE_STAGES

    return {k: v for name in SIDE_STAGES for k, v in yaml.safe_load((ROOT / name / "dvc.yaml").read_text(encoding="utf8"))["stages"].items()}


def all_stages(): return {**stages(), **side_stages()}


def stage_call(cmd):
    "Notebook, output and parameters of a stage's papermill command."
    words = cmd.split()
    paths = [w for w in words if w.endswith(".ipynb")]
    return *paths, {words[i + 1]: words[i + 2] for i, w in enumerate(words) if w == "-p"}


# The package


def test_package_equals_what_the_notebooks_export(tmp_path):
    for name in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (tmp_path / "gnn_ecommerce").mkdir()
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fresh, here = ({f.name: f.read_text(encoding="utf8") for f in (base / "gnn_ecommerce").glob("*.py")} for base in (tmp_path, ROOT))
    assert set(here) == set(fresh), "files in gnn_ecommerce/ and files that the notebooks export differ: run `nbdev_export`"
    stale = [name for name in fresh if fresh[name] != here[name]]
    assert not stale, f"{', '.join(sorted(stale))}: differs from its notebook: run `nbdev_export`"


@pytest.mark.parametrize("path", ALL)
def test_notebook_is_clean(path):
    from execnb.nbio import nb2str
    from nbdev.clean import _nbdev_clean

    text = path.read_text(encoding="utf8")
    nb = json.loads(text)
    _nbdev_clean(nb, path=None)
    assert nb2str(nb) == text, f"{path.name}: nbdev_clean would change it: run `nbdev_clean`"


@pytest.mark.parametrize("path", ALL)
def test_stored_outputs_are_fit_to_publish(path):
    "No paths of one machine, no errors, no warnings, no bulk."
    text = path.read_text(encoding="utf8")
    assert len(text) < 400_000, f"{path.name}: expected less than 400 kB, found {len(text)}: make plots smaller"
    for cell in nbformat.reads(text, 4).cells:
        for out in cell.get("outputs", ()):
            assert out.output_type != "error", f"{path.name}: a stored error: {cell.source[:80]}"
            assert not (out.output_type == "stream" and out.name == "stderr"), f"{path.name}: stored stderr: {''.join(out.text)[:200]}"
            shown = json.dumps(out)
            found = re.search(r"(/root/|/home/|/work/|/tmp/|/Users/)[\w./-]*", re.sub(r'"image/png": "[^"]*"', "", shown))
            assert not found, f"{path.name}: a path of one machine in a stored output: {found[0]}"


@pytest.mark.parametrize("path", [p for p in ALL if p.id in NUMBERED])
def test_notebook_follows_the_house_style(path):
    nb = nbformat.read(path, 4)
    first = nb.cells[0]
    assert first.cell_type == "markdown" and re.match(r"# .+\n\n> .+", first.source), f"{path.name}: expected a title and a `> subtitle` first"
    module = re.sub(r"^\d\d[a-z]?_", "", path.stem)
    named = [c for c in nb.cells if re.search(rf"^#\| ?default_exp {module}$", c.source, re.M)]
    assert named, f"{path.name}: expected `#| default_exp {module}`"
    for cell in nb.cells:
        if not directives(cell) & {"export", "exporti", "exports"}: continue
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 56, f"{path.name}: expected about 25 lines in an exported cell and never more than 55, found {len(lines)-1}: split it by meaning\n{lines[1]}"


# README and site


def test_readme_equals_index_notebook():
    assert (ROOT / "README.md").read_text(encoding="utf8") == readme(), "README.md differs from nbs/index.ipynb: run `make check`"


def test_links_of_readme_lead_to_files():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", text)
    lost = [link for link in links if not (ROOT / link).exists()]
    assert links and not lost, f"README.md: expected files behind its links, found none at {', '.join(lost)}"


@pytest.mark.parametrize("path", ALL)
def test_links_of_notebooks_lead_to_files(path):
    texts = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\((?!\w+:|#|/)([^)#\s]+)", text)]
    lost = [link for link in links if not (path.parent / link).exists()]
    assert not lost, f"{path.name}: expected files behind its links, found none at {', '.join(lost)}: link what is there, name what is not yet"


def test_site_lists_every_notebook_once():
    expected = {f.relative_to(ROOT).with_suffix("").as_posix() for f in notebooks() if f.name != "index.ipynb"}
    found = listed()
    assert set(found) == expected and len(found) == len(set(found)), f"docs/*.md list {sorted(set(found) ^ expected)} wrongly"


# Stages


def test_every_stage_of_the_package_is_in_dvc_yaml_and_has_a_notebook():
    from gnn_ecommerce.core import SIDE_STAGES, STAGES

    assert tuple(stages()) == STAGES and tuple(side_stages()) == tuple(SIDE_STAGES)
    for module in (ROOT / "gnn_ecommerce").glob("[a-z]*.py"):
        for name in re.findall(r"^def run_(\w+)\(params\b", module.read_text(encoding="utf8"), re.M):
            if name == "stage": continue
            assert module.stem == name, f"run_{name}: expected in module {name}, found in {module.stem}"
            assert name in all_stages(), f"run_{name}: expected a stage {name} in dvc.yaml, found none"


@pytest.mark.parametrize("stage", all_stages())
def test_stage_hands_its_notebook_parameters_that_it_declares(stage):
    import papermill

    spec = all_stages()[stage]
    source, target, passed = stage_call(spec["cmd"])
    notebook = NUMBERED[Path(source).stem]
    assert re.fullmatch(rf"nbs/\d\d[a-z]?_{stage}\.ipynb", source) and notebook == ROOT / source
    assert target == f"reports/notebooks/{notebook.name}"
    tagged = [c for c in nbformat.read(notebook, 4).cells if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == 1, f"{source}: expected one cell tagged `parameters`, found {len(tagged)}: papermill would run the defaults"
    declared = papermill.inspect_notebook(str(notebook))
    assert set(passed) <= set(declared), f"{stage}: dvc.yaml passes {sorted(set(passed) - set(declared))}, the notebook declares {sorted(declared)}"
    assert passed.get("params") == "params.yaml" and declared["params"]["default"].strip("'\"") == ""
    assert any("stage" in directives(c) and f"run_{stage}(params" in c.source for c in nbformat.read(notebook, 4).cells)


@pytest.mark.parametrize("stage", all_stages())
def test_stage_depends_on_what_it_uses(stage):
    from gnn_ecommerce.core import read_params

    spec, values = all_stages()[stage], read_params(ROOT / "params.yaml")
    for section in spec["params"]: assert section in values, f"{stage}: dvc.yaml names the section {section}, params.yaml has none"
    assert {stage, "seed"} <= set(spec["params"])
    deps = [d for d in spec["deps"] if d.endswith(".py")]
    assert not [d for d in spec["deps"] if d.endswith(".ipynb")], "a stage depends on modules, not on notebooks"
    assert set(deps) == {f"gnn_ecommerce/{m}.py" for m in modules_of(stage)}, f"{stage}: expected the modules that it imports as deps"


def modules_of(name, seen=None):
    "Modules of the package that one module imports, directly or not, and itself."
    seen = seen if seen is not None else set()
    if name in seen or not (ROOT / "gnn_ecommerce" / f"{name}.py").is_file(): return seen
    seen.add(name)
    for node in ast.walk(ast.parse((ROOT / "gnn_ecommerce" / f"{name}.py").read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom):
            own = node.module or ""
            if node.level == 1: own = f"gnn_ecommerce.{own}"
            if own.startswith("gnn_ecommerce."): modules_of(own.split(".")[1], seen)
            elif own.rstrip(".") == "gnn_ecommerce":
                for alias in node.names: modules_of(alias.name, seen)
    return seen


def test_imports_point_one_way():
    "A notebook imports only what stands before it."
    order = {re.sub(r"^\d\d[a-z]?_", "", stem): i for i, stem in enumerate(sorted(NUMBERED))}
    for name in order:
        if not (ROOT / "gnn_ecommerce" / f"{name}.py").is_file(): continue
        for other in modules_of(name) - {name}: assert order[other] < order[name], f"{name} imports {other}, which comes later"


# Requirements


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf8")
    return config["DEFAULT"]


GROUPS = ("serve_requirements", "explore_requirements", "tune_requirements", "dev_requirements", "docs_requirements")
EXTRAS = {name: ("serve_requirements",) for name in ("protocol", "stores", "model_client", "monitoring", "engine", "http_server", "model_server", "gate", "api_server")} | {"tuning": ("tune_requirements",)}  # modules that need more than the base
EXTRAS |= {name: ("explore_requirements",) for name in ("explorer_state", "explorer")}


def locked():
    "Versions in requirements.lock by canonical name."
    lines = (ROOT / "requirements.lock").read_text(encoding="utf8").splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==([\w.!]+)", line) for line in lines if line and not line.startswith("#")]
    assert all(pins), "requirements.lock: expected name==version on every line"
    return {canonicalize_name(m[1]): m[2] for m in pins}


def wanted(*groups):
    return [Requirement(text) for group in groups for text in settings()[group].split()]


def test_lock_pins_everything_that_an_installation_needs():
    pins, missing, todo, seen = locked(), [], [], set()
    for req in wanted("requirements", *GROUPS):
        assert req.specifier, f"{req.name}: expected a pin or a bound in settings.ini"
        assert req.specifier.contains(pins.get(canonicalize_name(req.name), "0"), prereleases=True), f"{req}: requirements.lock has {pins.get(canonicalize_name(req.name))}"
        todo.append((canonicalize_name(req.name), frozenset(req.extras)))
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen: continue
        seen.add((name, extras))
        if name not in pins: missing.append(name); continue
        for text in metadata.requires(name) or ():
            req = Requirement(text)
            if not req.marker or any(req.marker.evaluate({"extra": e}) for e in ("", *extras)): todo.append((canonicalize_name(req.name), frozenset(req.extras)))
    foreign = {"setuptools", "pip", "wheel", "triton"}
    missing = [name for name in missing if name not in foreign and not name.startswith(("nvidia-", "cuda-"))]
    assert not missing, f"requirements.lock: expected {', '.join(sorted(missing))} too: run `make lock`"


def test_lock_installs_on_the_oldest_python():
    "pip on Debian 12 would search for hours where one pin wants a newer Python."
    pins = locked()
    strict = [d.name for d in metadata.distributions() if pins.get(canonicalize_name(d.name)) == d.version and not runs_on_oldest(d)]
    assert not strict, f"requirements.lock: {', '.join(strict)} does not run on Python {OLDEST}: pin an older version"


def test_modules_import_only_what_is_installed_with_them():
    known = metadata.packages_distributions()
    extras = {name: {canonicalize_name(r.name) for r in wanted("requirements", *groups)} for name, groups in EXTRAS.items()}
    base = {canonicalize_name(r.name) for r in wanted("requirements")}
    for module in (ROOT / "gnn_ecommerce").glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(module.read_text(encoding="utf8"))):
            if isinstance(node, ast.Import): names |= {a.name.split(".")[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: names.add(node.module.split(".")[0])
        for name in names - set(sys.stdlib_module_names) - {"gnn_ecommerce"}:
            owners = {canonicalize_name(d) for d in known.get(name, ())}
            assert owners & extras.get(module.stem, base), f"{module.name} imports {name}: expected {', '.join(owners) or name} among the requirements in settings.ini"


def test_no_file_names_a_machine():
    "Nothing committed points at a package server or a folder of one machine."
    for name in ("requirements.lock", "Makefile", ".ci/run", "settings.ini", "dvc.yaml", "params.yaml"):
        text = (ROOT / name).read_text(encoding="utf8")
        assert not re.search(r"https?://|--index|find-links|/root/|/home/|/work/", text), f"{name}: expected no addresses"
