"""The schema: every key, its default and what it does.

Sections and names are D3Still's, so that published files load; their defaults are the published ones.
``STUDENT_*`` is the query network, ``TEACHER_*`` the gallery network. In stage 0
(``DISTILLER.TYPE: NONE``) the one network that is trained is described by the ``STUDENT_*`` keys.

A row is ``_C.SECTION.KEY = default  # meaning``, or ``= default, RULE`` where not every value of its type will do.
Baselines, ACD and RAHO bring their own sections with their ``register`` (d3still/distillers, d3still/solver/raho.py).
"""

from yacs.config import CfgNode as Node

from d3still.config.rules import (
    AT_LEAST_1,
    AT_LEAST_2,
    BELOW_1,
    CAMERA_PATTERN,
    CARD,
    EPOCHS,
    FRACTION,
    NOT_NEGATIVE,
    ON_OFF_AUTO,
    PADDING,
    PATH,
    PIXELS,
    POSITIVE,
    RE_RANKING,
    RUN_NAME,
    SEED,
    SIZE,
    STRIDE,
    THREE,
    THREE_POSITIVE,
    one_of,
)

_C = Node()

_C.EXPERIMENT = Node()
_C.EXPERIMENT.DEVICE = "cuda", one_of("cuda", "cpu")  # cuda falls back to cpu where there is none
_C.EXPERIMENT.DEVICE_ID = "0", CARD  # of a run in one process
_C.EXPERIMENT.PRECISION = "auto", one_of("auto", "float32", "bfloat16", "float16")
_C.EXPERIMENT.CHECKPOINT_ACTIVATIONS = "auto", ON_OFF_AUTO  # recompute them; auto: once the memory ends
_C.EXPERIMENT.NUM_THREADS = 0, NOT_NEGATIVE  # of the CPU; 0 = OMP_NUM_THREADS, else the cores that are free at start
_C.EXPERIMENT.SYNC_BN = False  # batch norm over all ranks
_C.EXPERIMENT.IMPORTS = []  # a user's own modules or files, imported before the config is read
_C.EXPERIMENT.TRIPLET_METHOD = "batch_hard", one_of("batch_hard", "batch_soft", "batch_sample")
_C.EXPERIMENT.TRIPLET_MARGIN = 0.3, NOT_NEGATIVE  # not used by batch_soft
_C.EXPERIMENT.IF_LABELSMOOTH = True  # cross entropy smoothed by 0.1
_C.EXPERIMENT.CE_LOSS_WEIGHT = 1.0, NOT_NEGATIVE
_C.EXPERIMENT.TRIPLET_LOSS_WEIGHT = 1.0, NOT_NEGATIVE

_C.DISTILLER = Node()
_C.DISTILLER.TYPE = "NONE"  # NONE (stage 0) | a baseline (stage 1) | ACD (stage 2)
_C.DISTILLER.TEACHER_NAME = "ResNet101"
_C.DISTILLER.TEACHER_LAST_STRIDE = 1, STRIDE
_C.DISTILLER.TEACHER_MODEL_PATH = "", PATH  # weights of the gallery network; {root} and the like: configs/README.md
_C.DISTILLER.STUDENT_NAME = "ResNet18"
_C.DISTILLER.STUDENT_LAST_STRIDE = 1, STRIDE
_C.DISTILLER.STUDENT_PRETRAIN_CHOICE = True  # False: without a path, train from scratch
_C.DISTILLER.STUDENT_PRETRAIN_PATH = "", PATH  # stage 2: the stage-1 result; else ImageNet weights, "" = download

_C.INPUT = Node()
_C.INPUT.STUDENT_SIZE_TRAIN = [64, 64], SIZE  # height, width
_C.INPUT.STUDENT_SIZE_TEST = [64, 64], SIZE
_C.INPUT.STUDENT_PADDING = 2, PADDING
_C.INPUT.TEACHER_SIZE_TRAIN = [256, 256], SIZE
_C.INPUT.TEACHER_SIZE_TEST = [256, 256], SIZE
_C.INPUT.TEACHER_PADDING = 8, PADDING
_C.INPUT.SIZE_TRAIN = [], SIZE  # stage 2: the identity-balanced images X^t; [] = as TEACHER_SIZE_TRAIN
_C.INPUT.SIZE_TEST = [], SIZE  # stage 2: gallery images at test; [] = as TEACHER_SIZE_TEST
_C.INPUT.PADDING = -1, PADDING  # stage 2: padding of X^t; -1 = as TEACHER_PADDING
_C.INPUT.PROB = 0.5, FRACTION  # horizontal flip
_C.INPUT.RE_PROB = 0.5, FRACTION  # random erasing
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406], THREE
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225], THREE_POSITIVE

_C.DATASETS = Node()
_C.DATASETS.NAMES = "SOP"
_C.DATASETS.ROOT_DIR = "datasets", PATH  # the dataset's folder, or the one that holds it
_C.DATASETS.SPLIT = "test", one_of("test", "val")  # val: identities held out of the training set
_C.DATASETS.CAMERA_PATTERN = "", CAMERA_PATTERN  # folder datasets: a regular expression whose group 1 is the camera

_C.DATALOADER = Node()
_C.DATALOADER.NUM_WORKERS = 8, NOT_NEGATIVE  # upper bound; never more than the machine has cores
_C.DATALOADER.SAMPLER = "triplet", one_of("triplet", "softmax")  # identity-balanced batches, or a plain shuffle
_C.DATALOADER.PAIR_SAMPLER = "random", one_of("random", "identity")  # pair batches: a plain shuffle, or balanced
_C.DATALOADER.NUM_INSTANCE = 6, AT_LEAST_1  # images of an identity in an identity-balanced batch
_C.DATALOADER.CACHE = "none", one_of("none", "ram")  # ram: decode and resize each image once
_C.DATALOADER.ON_BAD_IMAGE = "raise", one_of("raise", "skip")  # an image that cannot be read: stop, or leave it out
_C.DATALOADER.MAX_PIXELS = 2**26, PIXELS  # of the largest image decoded (half a GiB); a larger JPEG is read reduced

_C.SOLVER = Node()
_C.SOLVER.OPTIMIZER_BUILDER = "Uniform"  # Uniform | RAHO
_C.SOLVER.OPTIMIZER_NAME = "SGD", one_of("SGD", "Adam", "AdamW")
_C.SOLVER.IMS_PER_BATCH = 96, AT_LEAST_2  # identity-balanced batch, over all ranks
_C.SOLVER.IMS_DISTILLATION_PER_BATCH = 256, AT_LEAST_2  # pair batch, over all ranks
_C.SOLVER.MAX_EPOCHS = 120, AT_LEAST_1
_C.SOLVER.BASE_LR = 0.01, POSITIVE
_C.SOLVER.LARGE_FC_LR = True  # whether FC_LR_TIMES applies
_C.SOLVER.FC_LR_TIMES = 1.0, NOT_NEGATIVE  # learning-rate factor of the embedding head and classifier
_C.SOLVER.BIAS_LR_FACTOR = 1.0, NOT_NEGATIVE
_C.SOLVER.MOMENTUM = 0.9, BELOW_1
_C.SOLVER.WEIGHT_DECAY = 0.0005, NOT_NEGATIVE
_C.SOLVER.WEIGHT_DECAY_BIAS = 0.0005, NOT_NEGATIVE
_C.SOLVER.LR_WARMUP_EPOCHS = 10, NOT_NEGATIVE
_C.SOLVER.LR_WARMUP_FACTOR = 0.1, NOT_NEGATIVE
_C.SOLVER.LR_WARMUP_METHOD = "linear", one_of("linear", "constant")
_C.SOLVER.LR_DECAY_TYPE = "WarmupCosineAnnealingLR", one_of("WarmupCosineAnnealingLR", "WarmupMultiStepLR")
_C.SOLVER.LR_DECAY_GAMMA = 0.1, POSITIVE
_C.SOLVER.LR_DECAY_STEPS = [40, 70], EPOCHS  # milestones; for cosine the first is the epoch at which decay starts
_C.SOLVER.LR_DECAY_ETA_MIN_LR = 1e-7, NOT_NEGATIVE
_C.SOLVER.CHECKPOINT_PERIOD = 120, AT_LEAST_1  # epochs between numbered copies; last.pth is written every epoch
_C.SOLVER.CHECKPOINT_STEPS = 0, NOT_NEGATIVE  # also write last.pth every so many steps within an epoch; 0 = no
_C.SOLVER.LOG_PERIOD = 270, AT_LEAST_1  # steps between two readings of the running losses
_C.SOLVER.EVAL_PERIOD = 120, AT_LEAST_1  # epochs between evaluations; the last epoch is always evaluated
_C.SOLVER.SEED = 2024, SEED

_C.TEST = Node()
_C.TEST.IMS_PER_BATCH = 512, AT_LEAST_1
_C.TEST.WEIGHTS = "", PATH  # a checkpoint to test instead of the run's own last.pth
_C.TEST.FLIP_FEATS = False  # add the features of the mirrored image
_C.TEST.TEST_METRIC = "cosine", one_of("cosine", "euclidean")
_C.TEST.EXCLUDE_SAME_CAMERA = True  # drop gallery images of the query's identity and camera
_C.TEST.RE_RANKING = False
_C.TEST.RE_RANKING_PARAMETER = [60, 10, 0.3], RE_RANKING  # k1, k2, lambda

_C.OUTPUT_DIR = Node()
_C.OUTPUT_DIR.ROOT_PATH = "log", PATH
_C.OUTPUT_DIR.EXPERIMENT_NAME = "", RUN_NAME  # "" = DATASET/CONFIG_STEM
