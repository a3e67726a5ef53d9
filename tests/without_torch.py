"""The beginning of a program in which torch and what an extra brings with it seem not installed."""

WITHOUT_TORCH = """
import importlib.machinery, sys

class WithoutTorch(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = ("torch", "torchvision", "timm", "onnxscript", "onnx_ir", "sympy")
        return None if name in missing else super().find_spec(name, path, target)

sys.meta_path[:] = [
    WithoutTorch if each is importlib.machinery.PathFinder else each for each in sys.meta_path
]
"""
