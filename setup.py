"""The one part of the build that pyproject.toml cannot say: the native index core, `uniecs._core` (sdk/cpp)."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nanobind
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NANOBIND = Path(nanobind.__file__).parent
CORE = Path("sdk/cpp")
# Nothing of the machine that builds: the core chooses its instructions when it runs.
UNIX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
FLAGS = ["/std:c++17", "/O2", "/EHsc"] if sys.platform == "win32" else UNIX_FLAGS
# nanobind's own code casts between Python's structs.
ALIASING = [] if sys.platform == "win32" else ["-fno-strict-aliasing"]


class ParallelBuild(build_ext):
    """Compiles as many files at once as there are CPUs; setuptools compiles one after another."""

    def build_extensions(self) -> None:
        compile_one = self.compiler.compile

        def compile_all(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(partial(compile_one, **options), ([source] for source in sources))
                return [path for paths in made for path in paths]

        self.compiler.compile = compile_all
        super().build_extensions()


setup(
    cmdclass={"build_ext": ParallelBuild},
    ext_modules=[
        Extension(
            "uniecs._core",
            sources=[
                *sorted(map(str, CORE.glob("src/*.cpp"))),
                str(CORE / "python/core.cpp"),
                str(NANOBIND / "src/nb_combined.cpp"),
            ],
            depends=[*map(str, CORE.glob("src/*.hpp")), *map(str, CORE.glob("include/uniecs/*.hpp"))],
            include_dirs=[str(CORE / "include"), nanobind.include_dir(), str(NANOBIND / "ext/robin_map/include")],
            define_macros=[("NDEBUG", "1")],
            extra_compile_args=[*FLAGS, *ALIASING],
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
            language="c++",
        )
    ],
)
