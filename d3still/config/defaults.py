"""The schema: every key, its default and what it does.

Sections and names are D3Still's, so that published files load; their defaults are the published ones.
``STUDENT_*`` is the query network, ``TEACHER_*`` the gallery network. In stage 0
(``DISTILLER.TYPE: NONE``) the one network that is trained is described by the ``STUDENT_*`` keys.
"""

from yacs.config import CfgNode as Node

_C = Node()

_C.EXPERIMENT = Node()
_C.EXPERIMENT.DEVICE = "cuda"  # cuda | cpu; cuda falls back to cpu where there is none
_C.EXPERIMENT.DEVICE_ID = "0"  # the card of a run in one process; several cards: torchrun
_C.EXPERIMENT.PRECISION = "auto"  # auto | float32 | bfloat16 | float16
_C.EXPERIMENT.CHECKPOINT_ACTIVATIONS = False  # recompute the learner's activations: less memory, more time
_C.EXPERIMENT.SYNC_BN = False  # batch norm over all ranks
_C.EXPERIMENT.IMPORTS = []  # a user's own modules or files, imported before the config is read
_C.EXPERIMENT.TRIPLET_METHOD = "batch_hard"  # batch_hard | batch_soft | batch_sample
_C.EXPERIMENT.TRIPLET_MARGIN = 0.3
_C.EXPERIMENT.IF_LABELSMOOTH = True  # cross entropy smoothed by 0.1
_C.EXPERIMENT.CE_LOSS_WEIGHT = 1.0
_C.EXPERIMENT.TRIPLET_LOSS_WEIGHT = 1.0

_C.DISTILLER = Node()
_C.DISTILLER.TYPE = "NONE"  # NONE (stage 0) | a baseline (stage 1) | ACD (stage 2)
_C.DISTILLER.TEACHER_NAME = "ResNet101"
_C.DISTILLER.TEACHER_LAST_STRIDE = 1
_C.DISTILLER.TEACHER_MODEL_PATH = ""  # weights of the gallery network; {root} and {seed} are filled in
_C.DISTILLER.STUDENT_NAME = "ResNet18"
_C.DISTILLER.STUDENT_LAST_STRIDE = 1
_C.DISTILLER.STUDENT_PRETRAIN_CHOICE = True  # False: train from scratch
_C.DISTILLER.STUDENT_PRETRAIN_PATH = ""  # stage 2: the stage-1 result; else ImageNet weights, "" = download

_C.ACD = Node()
_C.ACD.BASELINE = "ROP"  # the baseline that stage 1 was trained with
_C.ACD.ALPHA = 3.0  # weight of the query-logits term
_C.ACD.BETA = 2.0  # weight of the collaborative-logits term
_C.ACD.TEMPERATURE = 2.0

_C.RAHO = Node()
_C.RAHO.RATIO = 0.3  # p, the share of scored blocks called unimportant
_C.RAHO.GAMMA = 0.05  # learning-rate factor a tier
_C.RAHO.CROSS_RESOLUTION = True  # also score blocks on low-resolution images
_C.RAHO.MAX_BATCHES = 0  # batches of the analysis; 0 = one whole pass

_C.VanillaKD = Node()
_C.VanillaKD.TEMPERATURE = 2.0
_C.VanillaKD.KD_WEIGHT = 1.0

_C.FITNET = Node()
_C.FITNET.KD_WEIGHT = 2.0

_C.CC = Node()
_C.CC.KD_WEIGHT = 1.0
_C.CC.NORMALIZE = True

_C.RKD = Node()
_C.RKD.DISTANCE_WEIGHT = 25.0
_C.RKD.ANGLE_WEIGHT = 50.0
_C.RKD.KD_WEIGHT = 1.0
_C.RKD.PDIST = Node()
_C.RKD.PDIST.EPSILON = 1e-12
_C.RKD.PDIST.SQUARED = False

_C.PKT = Node()
_C.PKT.KD_WEIGHT = 30000.0

_C.CSD = Node()
_C.CSD.TOPK = 96
_C.CSD.TEMPERATURE_QUERY = 1.0
_C.CSD.TEMPERATURE_GALLERY = 0.01
_C.CSD.KD_WEIGHT = 1.0

_C.ROP = Node()
_C.ROP.TOPK = 96
_C.ROP.TEMPERATURE = 0.1
_C.ROP.RANK_WEIGHT = 0.2
_C.ROP.KD_WEIGHT = 1.0

_C.RAML = Node()
_C.RAML.LAMBDA1 = 0.7482
_C.RAML.LAMBDA2 = 0.7482  # published default 0.6778, but the published runs used LAMBDA1 for both
_C.RAML.KD_WEIGHT = 1.0

_C.D3 = Node()
_C.D3.TOPK = 10
_C.D3.ALPHA = 50.0
_C.D3.BETA = 2.0
_C.D3.GAMMA = 1.0
_C.D3.KD_WEIGHT = 1.0

_C.UGD = Node()
_C.UGD.DISTILLATION_LAYER = 3  # stage of the query network whose map is distilled, counted from 1
_C.UGD.ALPHA = 2.0
_C.UGD.BETA = 2.0
_C.UGD.KD_WEIGHT = 1.0

_C.INPUT = Node()
_C.INPUT.STUDENT_SIZE_TRAIN = [64, 64]  # height, width
_C.INPUT.STUDENT_SIZE_TEST = [64, 64]
_C.INPUT.STUDENT_PADDING = 2
_C.INPUT.TEACHER_SIZE_TRAIN = [256, 256]
_C.INPUT.TEACHER_SIZE_TEST = [256, 256]
_C.INPUT.TEACHER_PADDING = 8
_C.INPUT.SIZE_TRAIN = []  # stage 2: the identity-balanced images X^t; [] = as TEACHER_SIZE_TRAIN
_C.INPUT.SIZE_TEST = []  # stage 2: gallery images at test; [] = as TEACHER_SIZE_TEST
_C.INPUT.PADDING = -1  # stage 2: padding of X^t; -1 = as TEACHER_PADDING
_C.INPUT.PROB = 0.5  # horizontal flip
_C.INPUT.RE_PROB = 0.5  # random erasing
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]

_C.DATASETS = Node()
_C.DATASETS.NAMES = "SOP"
_C.DATASETS.ROOT_DIR = "datasets"  # the dataset's folder, or the one that holds it
_C.DATASETS.SPLIT = "test"  # test | val: val tunes on identities held out of the training set
_C.DATASETS.CAMERA_PATTERN = ""  # folder datasets: a regular expression whose group 1 is the camera

_C.DATALOADER = Node()
_C.DATALOADER.NUM_WORKERS = 8  # upper bound; never more than the machine has cores
_C.DATALOADER.SAMPLER = "triplet"  # triplet: identity-balanced | softmax: plain shuffle
_C.DATALOADER.NUM_INSTANCE = 6  # images of an identity in a batch
_C.DATALOADER.CACHE = "none"  # none | ram: decode and resize each image once
_C.DATALOADER.ON_BAD_IMAGE = "raise"  # raise | skip
_C.DATALOADER.MAX_PIXELS = 2**26  # of the largest image that is decoded, half a GiB; a larger JPEG is read reduced

_C.SOLVER = Node()
_C.SOLVER.OPTIMIZER_BUILDER = "Uniform"  # Uniform | RAHO
_C.SOLVER.OPTIMIZER_NAME = "SGD"  # SGD | Adam | AdamW
_C.SOLVER.IMS_PER_BATCH = 96  # identity-balanced batch, over all ranks
_C.SOLVER.IMS_DISTILLATION_PER_BATCH = 256  # pair batch, over all ranks
_C.SOLVER.MAX_EPOCHS = 120
_C.SOLVER.BASE_LR = 0.01
_C.SOLVER.LARGE_FC_LR = True  # whether FC_LR_TIMES applies
_C.SOLVER.FC_LR_TIMES = 1.0  # learning-rate factor of the embedding head and classifier
_C.SOLVER.BIAS_LR_FACTOR = 1.0
_C.SOLVER.MOMENTUM = 0.9
_C.SOLVER.WEIGHT_DECAY = 0.0005
_C.SOLVER.WEIGHT_DECAY_BIAS = 0.0005
_C.SOLVER.LR_WARMUP_EPOCHS = 10
_C.SOLVER.LR_WARMUP_FACTOR = 0.1
_C.SOLVER.LR_WARMUP_METHOD = "linear"  # linear | constant
_C.SOLVER.LR_DECAY_TYPE = "WarmupCosineAnnealingLR"  # or WarmupMultiStepLR
_C.SOLVER.LR_DECAY_GAMMA = 0.1
_C.SOLVER.LR_DECAY_STEPS = [40, 70]  # milestones; for cosine the first is the epoch at which decay starts
_C.SOLVER.LR_DECAY_ETA_MIN_LR = 1e-7
_C.SOLVER.CHECKPOINT_PERIOD = 120  # epochs between numbered copies; last.pth is written every epoch
_C.SOLVER.CHECKPOINT_STEPS = 0  # also write last.pth every so many steps within an epoch; 0 = no
_C.SOLVER.LOG_PERIOD = 270  # steps between two readings of the running losses
_C.SOLVER.EVAL_PERIOD = 120  # epochs between evaluations; the last epoch is always evaluated
_C.SOLVER.SEED = 2024

_C.TEST = Node()
_C.TEST.IMS_PER_BATCH = 512
_C.TEST.WEIGHTS = ""  # a checkpoint to test instead of the run's own last.pth
_C.TEST.FLIP_FEATS = False  # add the features of the mirrored image
_C.TEST.TEST_METRIC = "cosine"  # cosine | euclidean
_C.TEST.EXCLUDE_SAME_CAMERA = True  # drop gallery images of the query's identity and camera
_C.TEST.RE_RANKING = False
_C.TEST.RE_RANKING_PARAMETER = [60, 10, 0.3]  # k1, k2, lambda

_C.OUTPUT_DIR = Node()
_C.OUTPUT_DIR.ROOT_PATH = "log"
_C.OUTPUT_DIR.EXPERIMENT_NAME = ""  # "" = DATASET/CONFIG_STEM


def default_tree() -> Node:
    """A fresh copy of the schema with its defaults."""
    return _C.clone()
