"""JupyterLab as `make lab` opens it: index.ipynb, the executed notebooks, and no notebook changed by opening it."""

from pathlib import Path

from ipykernel.ipkernel import IPythonKernel
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

ROOT = Path(__file__).resolve().parents[1]
CLEAN = {"display_name": "python3", "language": "python", "name": "python3"}


def as_lab_writes(metadata):
    "A notebook's metadata with what JupyterLab would add at once, which marks the notebook as changed."
    spec = KernelSpecManager().get_kernel_spec("python3")
    kernel = {"display_name": spec.display_name, "language": spec.language, "name": "python3"}
    return metadata | {"kernelspec": kernel, "language_info": dict(IPythonKernel.language_info)}


def as_git_has(metadata):
    "The same without it, as nbdev_clean leaves it."
    return {key: value for key, value in metadata.items() if key != "language_info"} | {"kernelspec": CLEAN}


class Contents(AsyncLargeFileManager):
    "Files; a notebook comes as JupyterLab would write it, and goes as Git has it."

    async def get(self, path, content=True, *args, **kwargs):
        model = await super().get(path, content, *args, **kwargs)
        if model["type"] == "notebook" and content:
            model["content"]["metadata"] = as_lab_writes(model["content"]["metadata"])
        return model

    async def save(self, model, path=""):
        if model.get("type") == "notebook" and model.get("content"):
            model["content"]["metadata"] = as_git_has(model["content"]["metadata"])
        return await super().save(model, path)


executed = "?file-browser-path=/reports/notebooks" if (ROOT / "reports/notebooks").is_dir() else ""
if "get_config" in globals():
    c = get_config()  # noqa: F821
    c.ServerApp.root_dir = str(ROOT)
    c.ServerApp.contents_manager_class = Contents
    c.LabApp.default_url = f"/lab/tree/nbs/index.ipynb{executed}"
