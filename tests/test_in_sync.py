"""What is generated must equal its source: the package, README.md, the site's lists, dvc.yaml's parameters."""

import ast
import graphlib
import json
import re
import shutil
import statistics
import sys
from configparser import ConfigParser
from importlib import metadata

import nbformat
import pytest
import yaml
from conftest import ROOT
from house import floors, imports, rooms, source
from notebooks import OLDEST, directives, export, listed, module, notebooks, numbered, readme, runs_on_oldest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = ROOT / "gnn_ecommerce"
NUMBERED = {module(f): f for f in numbered()}


def some(files):
    return [pytest.param(f, id=f.relative_to(ROOT / "nbs").with_suffix("").as_posix()) for f in files]


ALL, EXPORTING = some(notebooks()), some(numbered())


def stages():
    "Stages of dvc.yaml by name."
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf8"))["stages"]


def side_stages():
    "Stages with a DVC file of their own, which a plain `dvc repro` leaves alone, by name."
    from gnn_ecommerce.core import SIDE_STAGES

    return {
        k: v
        for name in SIDE_STAGES
        for k, v in yaml.safe_load((ROOT / name / "dvc.yaml").read_text(encoding="utf8"))["stages"].items()
    }


def all_stages():
    return {**stages(), **side_stages()}


def stage_call(cmd):
    "Notebook, output and parameters of a stage's papermill command."
    words = cmd.split()
    paths = [w for w in words if w.endswith(".ipynb")]
    return *paths, {words[i + 1]: words[i + 2] for i, w in enumerate(words) if w == "-p"}


# The package


def test_package_equals_what_the_notebooks_export(tmp_path):
    for name in ("settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (tmp_path / "gnn_ecommerce").mkdir()
    shutil.copy(PACKAGE / "__init__.py", tmp_path / "gnn_ecommerce")  # written by hand, nbdev keeps its version
    export(tmp_path)
    fresh, here = (
        {f.relative_to(base).as_posix(): f.read_text(encoding="utf8") for f in (base / "gnn_ecommerce").rglob("*.py")}
        for base in (tmp_path, ROOT)
    )
    assert set(here) == set(fresh), (
        "files in gnn_ecommerce/ and files that the notebooks export differ: run `make check`"
    )
    stale = [name for name in fresh if fresh[name] != here[name]]
    assert not stale, f"{', '.join(sorted(stale))}: differs from its notebook: run `make check`"


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
            assert not (out.output_type == "stream" and out.name == "stderr"), (
                f"{path.name}: stored stderr: {''.join(out.text)[:200]}"
            )
            shown = json.dumps(out)
            found = re.search(
                r"(/root/|/home/|/work/|/tmp/|/Users/)[\w./-]*", re.sub(r'"image/png": "[^"]*"', "", shown)
            )
            assert not found, f"{path.name}: a path of one machine in a stored output: {found[0]}"


@pytest.mark.parametrize("path", EXPORTING)
def test_notebook_opens_with_title_subtitle_and_module(path):
    nb = nbformat.read(path, 4)
    assert nb.cells[0].cell_type == "markdown"
    assert re.match(r"# .+\n\n> .+", nb.cells[0].source), f"{path.name}: expected a title and a `> subtitle` first"
    named = [c for c in nb.cells if re.search(rf"^#\| ?default_exp {re.escape(module(path))}$", c.source, re.M)]
    assert named, f"{path.name}: expected `#| default_exp {module(path)}`"


# The house style


def exported(path):
    "Sources of a notebook's exported cells, without their directives."
    cells = [c for c in nbformat.read(path, 4).cells if directives(c) & {"export", "exporti", "exports"}]
    return ["\n".join(line for line in c.source.splitlines() if not line.startswith("#|")).strip("\n") for c in cells]


@pytest.mark.parametrize("path", EXPORTING)
def test_an_exported_cell_is_one_idea(path):
    "At most 30 lines, 1,600 characters and three definitions."
    large = []
    for code in exported(path):
        lines = [line for line in code.splitlines() if line.strip()]
        defined = [
            n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        size = (len(lines), len(code), len(defined))
        if any(x > most for x, most in zip(size, (30, 1600, 3))):
            large.append((*size, lines[0]))
    assert large == [], f"{path.name}: (lines, characters, definitions, first line) of cells to split by meaning"


def test_the_median_exported_cell_is_short():
    sizes = [len(code) for path in numbered() for code in exported(path)]
    assert statistics.median(sizes) <= 900


@pytest.mark.parametrize("path", ALL)
def test_prose_wraps_at_120(path):
    "Tables, formulas and long links cannot be broken."
    long = []
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "markdown":
            continue
        prose = re.sub(r"^```.*?^```$", "", cell.source, flags=re.M | re.S)
        for line in prose.splitlines():
            unbroken = line.lstrip().startswith(("|", "$", "<")) or max(map(len, line.split()), default=0) > 80
            if len(line) > 120 and not unbroken:
                long.append(line)
    assert long == [], f"{path.name}: lines of prose above 120 characters"


def bodies(tree):
    "Lists of statements of a syntax tree, each with the statement that it belongs to."
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            value = getattr(node, name, None)
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield node, value


def crowded(source):
    "Lines of code that hold several statements, or a one-line body and more than 80 characters."
    lines = source.splitlines()
    for node, body in bodies(ast.parse(source)):
        for one, two in zip(body, body[1:]):
            if one.end_lineno == two.lineno:
                yield lines[two.lineno - 1]
        first = body[0]
        line = lines[first.lineno - 1]
        inline = line.encode()[: first.col_offset].strip() not in (b"", b"else:") or line.strip().startswith("else: ")
        if isinstance(node, ast.Module) or (isinstance(first, ast.If) and line.strip().startswith("elif")):
            continue
        if inline and len(line) > 80 and not isinstance(first, ast.FunctionDef | ast.ClassDef):
            yield line


@pytest.mark.parametrize("path", ALL)
def test_a_line_is_one_statement(path):
    "A one-line body is welcome where the whole line fits 80 characters."
    sources = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    sources = [s for s in sources if not re.search(r"^\s*[%!]", s, re.M)]
    assert [line for s in sources for line in crowded(s)] == []


# README and site


def test_readme_equals_index_notebook():
    assert (ROOT / "README.md").read_text(encoding="utf8") == readme(), (
        "README.md differs from nbs/index.ipynb: run `make check`"
    )


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
    assert not lost, (
        f"{path.name}: expected files behind its links, found none at {', '.join(lost)}: "
        "link what is there, name what is not yet"
    )


def test_site_lists_every_notebook_once():
    expected = {f.relative_to(ROOT).with_suffix("").as_posix() for f in notebooks() if f.name != "index.ipynb"}
    found = listed()
    assert set(found) == expected and len(found) == len(set(found)), (
        f"docs/*.md list {sorted(set(found) ^ expected)} wrongly"
    )


# Stages


def test_every_stage_of_the_package_is_in_dvc_yaml_and_has_a_notebook():
    from gnn_ecommerce.core import SIDE_STAGES, STAGES, stage_module

    assert list(stages()) == list(STAGES)
    assert list(side_stages()) == list(SIDE_STAGES)
    places = {name: stage_module(name).removeprefix("gnn_ecommerce.") for name in all_stages()}
    found = {}
    for name in NUMBERED:
        for stage in re.findall(r"^def run_(\w+)\(\s*params\b", source(name), re.M):
            if stage != "stage":
                found[stage] = name
    assert found == places


@pytest.mark.parametrize("stage", all_stages())
def test_stage_hands_its_notebook_parameters_that_it_declares(stage):
    import papermill
    from gnn_ecommerce.core import stage_module

    spec = all_stages()[stage]
    source, target, passed = stage_call(spec["cmd"])
    notebook = NUMBERED[stage_module(stage).removeprefix("gnn_ecommerce.")]
    assert ROOT / source == notebook
    assert target == f"reports/notebooks/{notebook.relative_to(ROOT / 'nbs').as_posix()}"
    tagged = [c for c in nbformat.read(notebook, 4).cells if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == 1, (
        f"{source}: expected one cell tagged `parameters`, found {len(tagged)}: papermill would run the defaults"
    )
    declared = papermill.inspect_notebook(str(notebook))
    assert set(passed) <= set(declared), (
        f"{stage}: dvc.yaml passes {sorted(set(passed) - set(declared))}, the notebook declares {sorted(declared)}"
    )
    assert passed.get("params") == "params.yaml" and declared["params"]["default"].strip("'\"") == ""
    calls = [c.source for c in nbformat.read(notebook, 4).cells if "stage" in directives(c)]
    assert [c for c in calls if re.search(rf"run_{stage}\(\s*params", c)], (
        f"{source}: expected a cell that runs the stage"
    )


@pytest.mark.parametrize("stage", all_stages())
def test_stage_depends_on_what_it_uses(stage):
    from gnn_ecommerce.core import read_params, stage_module

    spec, values = all_stages()[stage], read_params(ROOT / "params.yaml")
    for section in spec["params"]:
        assert section in values, f"{stage}: dvc.yaml names the section {section}, params.yaml has none"
    assert {stage, "seed"} <= set(spec["params"])
    deps = [d for d in spec["deps"] if d.endswith(".py")]
    assert not [d for d in spec["deps"] if d.endswith(".ipynb")], "a stage depends on modules, not on notebooks"
    uses = modules_of(stage_module(stage).removeprefix("gnn_ecommerce."))
    assert sorted(deps) == sorted(f"gnn_ecommerce/{m.replace('.', '/')}.py" for m in uses)


# Imports


IMPORTS = imports()


def modules_of(name, seen=None):
    "Modules of the package that one module imports, directly or not, and itself."
    seen = seen if seen is not None else set()
    if name not in seen:
        seen.add(name)
        for other in IMPORTS[name]:
            modules_of(other, seen)
    return seen


def test_imports_point_one_way():
    "A chapter imports earlier chapters; a part imports earlier parts of its folder."
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if name.rpartition(".")[0] == other.rpartition(".")[0] and NUMBERED[other].name[:2] >= NUMBERED[name].name[:2]
    ]
    assert upward == []


def test_folders_form_no_circle():
    "Chapters and folders, with an arrow where one imports from the other, can be put in one order."
    try:
        floors(rooms())
    except graphlib.CycleError as err:
        pytest.fail(f"imports run in a circle: {' <- '.join(err.args[1])}")


#: the function behind `python -m`, one in each module that is a command
SEVERAL = {"main"}


def public_names(tree):
    "Names that a module defines at its top, without methods that are patched onto a class."
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            patched = any("patch" in ast.unparse(d) for d in node.decorator_list)
            names = [] if patched else [node.name]
        elif isinstance(node, ast.Assign):
            names = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        else:
            names = [node.target.id] if isinstance(node, ast.AnnAssign) else []
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_is_defined_once():
    places = {}
    for name in NUMBERED:
        for public in set(public_names(ast.parse(source(name)))):
            places.setdefault(public, []).append(name)
    assert {public: where for public, where in places.items() if len(where) > 1 and public not in SEVERAL} == {}


def test_a_circle_of_folders_is_found():
    with pytest.raises(graphlib.CycleError):
        floors({"graph": {"ranking": 1}, "ranking": {"graph": 1}})


# Requirements


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf8")
    return config["DEFAULT"]


GROUPS = ("serve_requirements", "explore_requirements", "tune_requirements", "dev_requirements", "docs_requirements")
#: modules that need more than the base
EXTRAS = dict.fromkeys(
    ("serving.http_server", "model_server", "api_server", "monitoring", "cli")
    + ("shop.stores", "shop.model_client", "shop.request_guard"),
    ("serve_requirements",),
)
EXTRAS |= {"run.tuning": ("tune_requirements",)}
EXTRAS |= dict.fromkeys(("explore.state", "explore.page"), ("explore_requirements",))


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
        assert req.specifier.contains(pins.get(canonicalize_name(req.name), "0"), prereleases=True), (
            f"{req}: requirements.lock has {pins.get(canonicalize_name(req.name))}"
        )
        todo.append((canonicalize_name(req.name), frozenset(req.extras)))
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name not in pins:
            missing.append(name)
            continue
        for text in metadata.requires(name) or ():
            req = Requirement(text)
            if not req.marker or any(req.marker.evaluate({"extra": e}) for e in ("", *extras)):
                todo.append((canonicalize_name(req.name), frozenset(req.extras)))
    foreign = {"setuptools", "pip", "wheel", "triton"}
    missing = [name for name in missing if name not in foreign and not name.startswith(("nvidia-", "cuda-"))]
    assert not missing, f"requirements.lock: expected {', '.join(sorted(missing))} too: run `make lock`"


def test_lock_installs_on_the_oldest_python():
    "pip on Debian 12 would search for hours where one pin wants a newer Python."
    pins = locked()
    strict = [
        d.name
        for d in metadata.distributions()
        if pins.get(canonicalize_name(d.name)) == d.version and not runs_on_oldest(d)
    ]
    assert not strict, f"requirements.lock: {', '.join(strict)} does not run on Python {OLDEST}: pin an older version"


def test_modules_import_only_what_is_installed_with_them():
    known = metadata.packages_distributions()
    extras = {
        name: {canonicalize_name(r.name) for r in wanted("requirements", *groups)} for name, groups in EXTRAS.items()
    }
    base = {canonicalize_name(r.name) for r in wanted("requirements")}
    for name in NUMBERED:
        packages = set()
        for node in ast.walk(ast.parse(source(name))):
            if isinstance(node, ast.Import):
                packages |= {a.name.split(".")[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level:
                packages.add(node.module.split(".")[0])
        for package in packages - set(sys.stdlib_module_names) - {"gnn_ecommerce"}:
            owners = {canonicalize_name(d) for d in known.get(package, ())}
            provider = ", ".join(owners) or package
            assert owners & extras.get(name, base), (
                f"{name} imports {package}: expected {provider} among the requirements in settings.ini"
            )


@pytest.mark.parametrize("name", ["run.pipeline", "run.front_page", "explainability", "bundle"])
def test_the_demo_needs_the_base_alone(name):
    "`make demo` installs no extra: what it reaches, at a function's first call too, must not need one."
    only_its_map = {"explore.state"}  # umap, which no page of the demo draws
    assert modules_of(name) & EXTRAS.keys() <= only_its_map


def test_no_file_names_a_machine():
    "Nothing committed points at a package server or a folder of one machine."
    for name in ("requirements.lock", "Makefile", ".ci/run", "settings.ini", "dvc.yaml", "params.yaml"):
        text = (ROOT / name).read_text(encoding="utf8")
        assert not re.search(r"https?://|--index|find-links|/root/|/home/|/work/", text), (
            f"{name}: expected no addresses"
        )
