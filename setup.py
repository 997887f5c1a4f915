"""Hand the package's metadata, which lives in settings.ini, to setuptools."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def entries(key: str) -> list[str]:
    """The entries of `key`, one a line, so that each may hold spaces and markers."""
    return [line.strip() for line in settings.get(key, "").splitlines() if line.strip()]


library = settings["lib_path"]
repository = settings["git_url"]
readme = (here / "README.md").read_text(encoding="utf-8")
extras = [key.removesuffix("_requirements") for key in settings if key.endswith("_requirements")]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.replace("](nbs/", f"]({repository}/raw/{settings['branch']}/nbs/"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    url=repository,
    project_urls={"Documentation": settings["doc_host"] + settings["doc_baseurl"]},
    keywords=settings["keywords"].split(),
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=[library, f"{library}.*"]),
    package_data={library: ["py.typed"]},
    install_requires=entries("requirements"),
    extras_require={extra: entries(f"{extra}_requirements") for extra in extras},
    entry_points={
        "console_scripts": entries("console_scripts"),
        "nbdev": [f"{library}={library}._modidx:d"],
    },
)
