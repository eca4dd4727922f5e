"""What pyproject.toml cannot say in a settled way: the kernel in C, without which torch's does the same more slowly."""

from setuptools import Extension, setup

# optional: without a compiler the installation goes on; measured, with -O2 the kernel takes 1.8 times as long
setup(
    ext_modules=[
        Extension("mmm.data.transforms._resize", ["mmm/data/transforms/_resize.c"], extra_compile_args=["-O3"], optional=True)
    ]
)
