"""What pyproject.toml cannot say: the commands, configs and the embedded sets go along, as d3still/share."""

from setuptools import find_packages, setup

PLACES = ("tools", "configs", "datasets/emoji", "datasets/icons")
SHARE = {f"d3still.share.{place.replace('/', '.')}": place for place in PLACES}

setup(packages=[*find_packages(include=["d3still*"]), *SHARE], package_dir=SHARE)
