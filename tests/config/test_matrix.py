"""configs/ against the published settings, key by key; every intended difference is listed here."""

import functools
import json
from collections import defaultdict
from pathlib import Path

import pytest

from d3still.config import REPOSITORY, get_cfg, load_config, run_dir

from .published import CONFORMANCE, SETTINGS, is_stage_2, meaning

CONFIGS = REPOSITORY / "configs"
FOLDERS = {"CUB200": "cub", "InShop": "inshop", "SOP": "sop", "MSMT17": "msmt17", "VeRi776": "veri"}

# Published files that are copies of another one: the two share a config of ours.
DUPLICATES = {
    "acd/InShop/Vanilla_ResNet101_256x256.yaml": "baseline/InShop/Vanilla/Vanilla_ResNet101_256x256.yaml",
    "acd/MSMT17/Vanilla_ResNet101_IBN_a_320x160.yaml": "baseline/MSMT17/Vanilla/Vanilla_ResNet101_IBN_a_320x160.yaml",
    "acd/MSMT17/Vanilla_ResNet101_320x160.yaml": "acd/MSMT17/Vanilla_ResNet101_480x240.yaml",  # misnamed
    "acd/SOP/Vanilla_ResNet101_256x256.yaml": "baseline/SOP/Vanilla/Vanilla_ResNet101_256x256.yaml",
    "acd/SOP/Vanilla_Swin_Transformer_Small_256x256.yaml": (
        "baseline/SOP/Vanilla/Vanilla_Swin_Transformer_Small_256x256.yaml"
    ),
    "baseline/InShop/Swin_Transformer_V2_Small_256x256_ResNet18_64x64/UGD.yaml": (  # trains on SOP
        "baseline/SOP/Swin_Transformer_V2_Small_256x256_ResNet18_64x64/UGD.yaml"
    ),
}

# Ours without a published file, each because a published one starts from its result.
CHOSEN = {
    "cub/vanilla/ResNet101_384x384.yaml",
    "cub/vanilla/Swin_Transformer_V2_Small_256x256.yaml",
    "sop/vanilla/ResNet101_384x384.yaml",
    "inshop/Swin_Transformer_V2_Small_256x256_ResNet18_64x64/ugd.yaml",
    *(
        f"cub/ResNet101_256x256_ResNet18_64x64/{name}.yaml"
        for name in ("fitnet", "cc", "csd", "raml", "rop", "d3", "ugd")
    ),
}

# Of the three baselines that the published files do not have: one pair a data set.
UNPUBLISHED = {
    f"{pair}/{prefix}{name}.yaml"
    for pair in (
        "cub/ResNet101_256x256_ResNet18_64x64",
        "inshop/ResNet101_256x256_ResNet18_64x64",
        "sop/ResNet101_256x256_ResNet18_64x64",
        "msmt17/ResNet101_320x160_ResNet18_160x80",
        "veri",
    )
    for name in ("bct", "aml", "ssp")
    for prefix in ("", "acd_")
}

# Key → why ours differs from the published value.
INTENDED = {
    "DISTILLER.TEACHER_MODEL_PATH": "our own stage 0 by default; the published file is named in a comment",
    "DISTILLER.STUDENT_PRETRAIN_PATH": "our own stage 1 by default; the published file is named in a comment",
    "OUTPUT_DIR.ROOT_PATH": "log instead of ./log",
    "OUTPUT_DIR.EXPERIMENT_NAME": "filled in from the config's place",
    "FITNET.KD_WEIGHT": "ACD's default of 1.0 where another baseline is used and nothing reads it",
}


def ours(published):
    """Our config for a published file, by the naming rule of the matrix."""
    settings = SETTINGS[DUPLICATES.get(published, published)]
    folder = CONFIGS / FOLDERS[settings["DATASETS.NAMES"]]
    kind = settings["DISTILLER.TYPE"]
    if kind == "NONE":
        height, width = settings["INPUT.STUDENT_SIZE_TRAIN"]
        return folder / "vanilla" / f"{settings['DISTILLER.STUDENT_NAME']}_{height}x{width}.yaml"
    return folder / Path(published).parts[2] / f"{'acd_' if is_stage_2(settings) else ''}{kind.lower()}.yaml"


@functools.cache
def loaded(path):
    return load_config(path)


def experiments(*folders):
    """Every config that is an experiment, not a part that others build on."""
    found = [path for folder in folders for path in sorted((CONFIGS / folder).rglob("*.yaml"))]
    return [path for path in found if not any(part.startswith("_") for part in path.relative_to(CONFIGS).parts)]


def differences(path, expected):
    values = loaded(path).flat()
    return {key for key in expected if values[key] != expected[key]}


def test_every_config_loads():
    paths = experiments(".")
    assert len(paths) >= 335
    for path in paths:
        cfg = loaded(path)
        assert cfg.is_frozen() and min(cfg.INPUT.SIZE_TRAIN) > 0


def test_duplicates_are_duplicates():
    by_content = defaultdict(list)
    for name, settings in SETTINGS.items():
        by_content[json.dumps(settings, sort_keys=True)].append(name)
    copies = {frozenset(names) for names in by_content.values() if len(names) > 1}
    assert copies == {frozenset(pair) for pair in DUPLICATES.items()}


def test_each_published_file_has_one_config_and_the_rest_are_chosen():
    files = defaultdict(list)
    for name in SETTINGS:
        files[ours(name)].append(name)
    assert all(len(names) == 1 for names in (set(names) - set(DUPLICATES) for names in files.values()))
    chosen = {CONFIGS / name for name in CHOSEN | {name for name in UNPUBLISHED if not name.startswith("veri")}}
    assert set(experiments("cub", "inshop", "sop", "msmt17")) == set(files) | chosen
    assert not set(files) & chosen


def test_every_published_setting_is_ours():
    """Key by key over all 271 files, the defaults of their codebases included."""
    seen = set()
    for name, settings in SETTINGS.items():
        different = differences(ours(name), meaning(settings))
        if settings["DISTILLER.TYPE"] == "FitNet":
            assert "FITNET.KD_WEIGHT" not in different, name
        assert different <= INTENDED.keys(), f"{name}: {sorted(different - INTENDED.keys())}"
        seen |= different
    assert seen == INTENDED.keys()


def test_what_no_published_file_sets_is_the_default():
    """The other direction: our configs change no key that the published code does not have."""
    known = get_cfg().flat()
    filled = {"INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST", "INPUT.PADDING"}
    for name, settings in SETTINGS.items():
        values, published = loaded(ours(name)).flat(), meaning(settings)
        changed = {key for key in known if key not in published and values[key] != known[key]}
        assert changed <= filled, name


@pytest.mark.parametrize("name", sorted(CHOSEN))
def test_a_chosen_config_differs_from_its_model_in_what_it_is_chosen_for(name):
    path = CONFIGS / name
    sizes = {"INPUT.STUDENT_SIZE_TRAIN", "INPUT.STUDENT_SIZE_TEST", "INPUT.STUDENT_PADDING"}
    paths = set(INTENDED)
    if name.startswith("inshop"):
        model = meaning(SETTINGS["baseline/SOP/Swin_Transformer_V2_Small_256x256_ResNet18_64x64/UGD.yaml"])
        assert differences(path, model) - paths == {"DATASETS.NAMES"}
    elif "vanilla" in name:
        swin, folder = "Swin" in name, name.split("/")[0]
        model = meaning(
            SETTINGS[
                "baseline/SOP/Vanilla/Vanilla_Swin_Transformer_Small_256x256.yaml"
                if swin
                else f"baseline/{'CUB200' if folder == 'cub' else 'SOP'}/Vanilla/Vanilla_ResNet101_256x256.yaml"
            ]
        )
        assert differences(path, model) - paths == ({"DATASETS.NAMES", "INPUT.RE_PROB"} if swin else sizes)
    else:
        kind = loaded(path).DISTILLER.TYPE
        model = meaning(SETTINGS[f"baseline/CUB200/ResNet101_256x256_ResNet18_128x128/{kind}.yaml"])
        assert differences(path, model) - paths == sizes


@pytest.mark.parametrize("name", sorted(UNPUBLISHED))
def test_an_unpublished_baselines_config_is_its_neighbours_with_another_baseline(name):
    path = CONFIGS / name
    fitnet = path.with_name("acd_fitnet.yaml" if path.name.startswith("acd_") else "fitnet.yaml")
    ours, other = loaded(path).flat(), loaded(fitnet).flat()
    different = {key for key in ours if ours[key] != other[key]}
    assert different <= {
        "DISTILLER.TYPE",
        "ACD.BASELINE",
        "DISTILLER.STUDENT_PRETRAIN_PATH",
        "OUTPUT_DIR.EXPERIMENT_NAME",
        "FITNET.KD_WEIGHT",
    }


# VeRi-776: the pair's folder, its row of the published table, the pair of MSMT17 that it takes after.
VERI = {
    "": ("ResNet101_256x256__ResNet18_128x128", "ResNet101_320x160_ResNet18_160x80", 256),
    "ResNet101_384x384_ResNet18_128x128": (
        "ResNet101_384x384__ResNet18_128x128",
        "ResNet101_480x240_ResNet18_160x80",
        384,
    ),
    "ResNet101_256x256_MobileNetV3_128x128": (
        "ResNet101_256x256__MobileNetV3_Small_128x128",
        "ResNet101_320x160_MobileNetV3_160x80",
        256,
    ),
    "ResNet101_IBN_256x256_ResNet18_128x128": (
        "ResNet101_IBN_256x256__ResNet18_128x128",
        "ResNet101_IBN_320x160_ResNet18_160x80",
        256,
    ),
}
PADDING = {128: 4, 256: 8, 384: 12}  # METHOD, "Images"
BASELINES = ("FitNet", "CC", "CSD", "RAML", "ROP", "D3", "UGD")


def as_veri(settings, size):
    """METHOD, "Settings": MSMT17's settings with VeRi-776's sizes, its padding, and 10 epochs of stage 2."""
    settings = settings | {"DATASETS.NAMES": "VeRi776"}
    for side, pixels in (("STUDENT_", 128), ("TEACHER_", size), ("", size)):
        if side or is_stage_2(settings):
            settings[f"INPUT.{side}SIZE_TRAIN"] = settings[f"INPUT.{side}SIZE_TEST"] = [pixels, pixels]
            settings[f"INPUT.{side}PADDING"] = PADDING[pixels]
    if is_stage_2(settings):
        settings |= {"SOLVER.MAX_EPOCHS": 10, "SOLVER.CHECKPOINT_PERIOD": 10}
    return settings


@pytest.mark.parametrize("folder", VERI)
def test_veri_takes_the_settings_of_msmt17(folder):
    row, pair, size = VERI[folder]
    table = json.loads((CONFORMANCE / "published_veri776.json").read_text())["VeRi776"][row]
    assert {*table, "UGD"} == set(BASELINES)
    for kind in BASELINES:
        for side, prefix in (("baseline", ""), ("acd", "acd_")):
            path = CONFIGS / "veri" / folder / f"{prefix}{kind.lower()}.yaml"
            expected = meaning(as_veri(SETTINGS[f"{side}/MSMT17/{pair}/{kind}.yaml"], size))
            assert differences(path, expected) <= INTENDED.keys(), path
            text = path.read_text()
            assert f"Chosen: the settings of {side}/MSMT17/{pair}/{kind}.yaml" in text
            if kind in table:
                result = table[kind]["ACD" if prefix else "baseline"]
                assert f"Published: the result, AIR mAP {result['mAP']}, R1 {result['R1']}." in text


def test_veri_has_the_published_pairs_and_their_gallery_networks():
    stage_0 = {"vanilla.yaml", "vanilla/ResNet101_384x384.yaml", "vanilla/ResNet101_ibn_a_256x256.yaml"}
    pairs = {
        f"{folder}/{p}{kind.lower()}.yaml".lstrip("/") for folder in VERI for kind in BASELINES for p in ("", "acd_")
    }
    others = {name.removeprefix("veri/") for name in UNPUBLISHED if name.startswith("veri/")}
    assert {str(path.relative_to(CONFIGS / "veri")) for path in experiments("veri")} == stage_0 | pairs | others
    model = SETTINGS["baseline/MSMT17/Vanilla/Vanilla_ResNet101_320x160.yaml"]
    for name in stage_0:
        sizes = {"INPUT.STUDENT_SIZE_TRAIN", "INPUT.STUDENT_SIZE_TEST", "INPUT.STUDENT_PADDING"}
        allowed = INTENDED.keys() | sizes | {"DATASETS.NAMES", "DISTILLER.STUDENT_NAME"}
        assert differences(CONFIGS / "veri" / name, meaning(model)) <= allowed
        inputs = loaded(CONFIGS / "veri" / name).INPUT
        height, width = inputs.STUDENT_SIZE_TRAIN
        assert height == width and [height, width] == inputs.STUDENT_SIZE_TEST
        assert PADDING[height] == inputs.STUDENT_PADDING


def weights_of(cfg, key):
    return cfg.DISTILLER[key].replace("{root}", cfg.OUTPUT_DIR.ROOT_PATH).replace("{seed}", str(cfg.SOLVER.SEED))


def test_each_stage_starts_from_the_one_before():
    """The gallery network's weights are the result of a stage-0 config of that network at that size and seed;
    the query network's, in stage 2, the result of the stage-1 config of that pair and baseline."""
    results = {str(run_dir(loaded(path)) / "last.pth"): loaded(path) for path in experiments(*FOLDERS.values())}
    assert len(results) == len(experiments(*FOLDERS.values()))
    for cfg in results.values():
        kind = cfg.DISTILLER.TYPE
        if kind == "NONE":
            continue
        gallery = results[weights_of(cfg, "TEACHER_MODEL_PATH")]
        assert gallery.DISTILLER.TYPE == "NONE" and gallery.DATASETS.NAMES == cfg.DATASETS.NAMES
        assert gallery.DISTILLER.STUDENT_NAME == cfg.DISTILLER.TEACHER_NAME
        assert gallery.INPUT.STUDENT_SIZE_TRAIN == cfg.INPUT.TEACHER_SIZE_TRAIN
        if kind == "ACD":
            query = results[weights_of(cfg, "STUDENT_PRETRAIN_PATH")]
            assert query.DISTILLER.TYPE == cfg.ACD.BASELINE and query.DATASETS.NAMES == cfg.DATASETS.NAMES
            for key in ("TEACHER_NAME", "STUDENT_NAME", "TEACHER_MODEL_PATH"):
                assert query.DISTILLER[key] == cfg.DISTILLER[key]
            for key in ("STUDENT_SIZE_TRAIN", "STUDENT_SIZE_TEST", "STUDENT_PADDING", "TEACHER_SIZE_TRAIN"):
                assert query.INPUT[key] == cfg.INPUT[key]
        else:
            assert cfg.DISTILLER.STUDENT_PRETRAIN_PATH == ""


def test_published_weights_are_named_where_they_belong():
    for name, settings in SETTINGS.items():
        path = ours(name)
        query, gallery = (settings.get(f"DISTILLER.{key}") for key in ("STUDENT_PRETRAIN_PATH", "TEACHER_MODEL_PATH"))
        if query:
            assert query in path.read_text(), path
        if gallery:
            stage_0 = [other for other in experiments(path.parents[1].name) if other.parent.name == "vanilla"]
            named = [other for other in stage_0 if gallery in other.read_text()]
            assert len(named) == 1, (path, gallery)
            assert gallery in path.read_text() + (path.parent / "_pair_.yaml").read_text()


def test_a_config_is_a_few_lines():
    """Short enough to read at a glance: what it is, what it builds on, what is its own."""
    for path in experiments(*FOLDERS.values()):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert len(lines) <= 7, path
        assert path.read_text().startswith("# "), path
