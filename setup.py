"""Builds the extension module advfeat._C against the installed torch; build_support/torch_build.py says what and how.

Environment: FORCE_CUDA=0|1 (else: torch has CUDA and a toolkit of its major version is found), CUDA_HOME,
TORCH_CUDA_ARCH_LIST (else "7.5;8.0;9.0+PTX"), MAX_JOBS (compilers at a time).
"""

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_support"))
import torch_build  # noqa: E402


def extension_and_commands():
    # Metadata and a source distribution need no torch, and pip asks for metadata twice before it builds.
    if {"egg_info", "dist_info", "sdist"} & set(sys.argv[1:]):
        return Extension("advfeat._C", sources=[]), {}
    plan = torch_build.make_plan()
    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # An editable install would compile in a folder that pip throws away; kept, ninja compiles what changed.
            self.build_temp = str(ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{plan.torch}")

    print(f"advfeat: torch {plan.torch}; CUDA {'on' if plan.cuda else 'off'} ({plan.reason}) {plan.architectures}")
    extension = Extension(
        "advfeat._C",
        sources=plan.sources,
        library_dirs=plan.library_dirs,
        libraries=plan.libraries,
        extra_compile_args=plan.compile_args(),
        language="c++",
    )
    return extension, {"build_ext": BuildExt}


# theory/ lies beside advfeat/ and installs inside it, so that no package named theory lands in site-packages.
packages = find_packages(include=["advfeat", "advfeat.*"])
package_dir = {"advfeat": "advfeat"}
if (ROOT / "theory" / "__init__.py").exists():
    packages += ["advfeat.theory"] + [f"advfeat.theory.{name}" for name in find_packages("theory")]
    package_dir["advfeat.theory"] = "theory"

extension, commands = extension_and_commands()
setup(packages=packages, package_dir=package_dir, ext_modules=[extension], cmdclass=commands)
