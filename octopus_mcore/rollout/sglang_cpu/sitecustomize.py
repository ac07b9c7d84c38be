"""Lets SGLang 0.5.23 start on a machine without a GPU. Python imports this file by itself in every process that has this folder
on PYTHONPATH, which only the engine's processes have.

SGLang computes with plain torch on such a machine, but importing it asks for things that exist only as CUDA builds. Each is
answered as little as possible, and only in an environment that holds SGLang:

* torchvision's PyPI build is linked to CUDA, so its operators are not registered and `import torchvision` fails at the first
  reference to `nms`. Declaring the operators' schemas just before the import is enough; nothing calls them.
* triton is imported all over SGLang for decorators of kernels that never run here. Where it is not installed, hollow modules
  stand in for it.
* Per-request seeds need `--enable-deterministic-inference`, which refuses the `torch_native` attention backend and then
  replaces torch operators by GPU kernels. Sampling by seed itself is plain torch, and torch on a CPU is deterministic.

One thing is not needed to start but to be quick:

* Weights arrive in shared memory that the trainer fills again and again. Torch maps it for every bucket anew, and the page
  faults of a fresh mapping cost more than copying what lies there. The last mapping is kept.
"""

import importlib.abc
import importlib.machinery
import sys
import types


def _installed(name):
    return importlib.machinery.PathFinder.find_spec(name) is not None


class _DeclareVisionOperators(importlib.abc.MetaPathFinder):
    """Declares torchvision's operators right before torchvision is imported, then leaves."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].vision_library = library  # the declaration lives as long as this object
        return None


class _Hollow(types.ModuleType):
    """A module in which every name exists: capitalised ones are classes, the others callable modules like this one."""

    __version__ = "3.0.0"

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper() or name == "constexpr":
            bases = (Exception,) if name.endswith("Error") or name.startswith("OutOf") else ()
            value = type(name, bases, {"__init__": lambda self, *args, **kwargs: None})
        else:
            value = _ARITHMETIC.get(name) or importlib.import_module(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args, **kwargs):
        """As a decorator, with or without arguments: the function stays what it is."""
        plain = len(args) == 1 and callable(args[0]) and not kwargs
        return args[0] if plain else (lambda function: function)

    def __contains__(self, item):
        return False

    def __iter__(self):
        return iter(())


_ARITHMETIC = {
    "cdiv": lambda a, b: -(-a // b),
    "next_power_of_2": lambda n: 1 << max(0, n - 1).bit_length(),
}


class _HollowTriton(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds hollow modules for triton and everything below it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "triton":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Hollow(spec.name)

    def exec_module(self, module):
        pass


def _allow_torch_native(module):
    if "torch_native" not in module.DETERMINISTIC_ATTENTION_BACKEND_CHOICES:
        module.DETERMINISTIC_ATTENTION_BACKEND_CHOICES.append("torch_native")


def _keep_torch_operators(module):
    module.enable_batch_invariant_mode = lambda *args, **kwargs: None


def _keep_last_mapping(module):
    rebuild, kept = module.rebuild_storage_filename, []

    def rebuild_and_keep(*arguments):
        kept[:] = [rebuild(*arguments)]  # which finds a mapping that is still kept
        return kept[0]

    module.rebuild_storage_filename = rebuild_and_keep


class _ChangeAfterImport(importlib.abc.MetaPathFinder):
    """Changes a few modules right after they are imported."""

    changes = {
        "sglang.srt.arg_groups.choices": _allow_torch_native,
        "sglang.srt.batch_invariant_ops": _keep_torch_operators,
        "torch.multiprocessing.reductions": _keep_last_mapping,
    }

    def find_spec(self, name, path=None, target=None):
        change = self.changes.get(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if change else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change
        return spec


if _installed("sglang"):
    sys.meta_path[:0] = [_DeclareVisionOperators(), _ChangeAfterImport()]
    if not _installed("triton"):
        sys.meta_path.append(_HollowTriton())
