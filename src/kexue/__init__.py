"""kexue (科学): the methods of Scientific Spaces (kexue.fm) for PyTorch, and their jobs.

Nothing heavy is imported here. Each method lives in one file of one folder; `kexue find TEXT` on
the command line finds it by article, name or role in English or Chinese.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
