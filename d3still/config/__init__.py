"""The config: the schema, the loader, published keys, and the paths that follow from a config."""

from d3still.config.bounded import read_tree
from d3still.config.load import dump_config, installed, load_config, plain_tree, user_code
from d3still.config.node import Config, get_cfg
from d3still.config.paths import REPOSITORY, filled_in, repositories, run_dir, weight_path
from d3still.config.sections import add_section

__all__ = [
    "REPOSITORY",
    "Config",
    "add_section",
    "dump_config",
    "filled_in",
    "get_cfg",
    "installed",
    "load_config",
    "plain_tree",
    "read_tree",
    "repositories",
    "run_dir",
    "user_code",
    "weight_path",
]
