"""Every configuration key with its default, type and meaning.

Keys and meanings are those of the HRNet family (leoxiaobin/deep-high-resolution-net.pytorch
lib/config/default.py, after microsoft/human-pose-estimation.pytorch); keys of Poise are marked
(Poise). The type of a default is the type of its key. Sizes are (width, height), as
in the published files.
"""

from yacs.config import CfgNode


def default_config() -> CfgNode:
    """Return a new, unfrozen CfgNode with every key at its default."""
    c = CfgNode()
    c.OUTPUT_DIR = "output"  # run folders go here: OUTPUT_DIR/<dataset>/<model>/<RUN_NAME>/
    # TensorBoard logs go here: LOG_DIR/<dataset>/<model>/<RUN_NAME>_<time>/
    c.LOG_DIR = "log"
    # prefix of relative DATASET.ROOT, MODEL.PRETRAINED, TEST.MODEL_FILE and TEST.COCO_BBOX_FILE
    c.DATA_DIR = ""
    # (Poise) name of the run folder; '' is the name of the experiment. If it holds the results of
    # another run, -2, -3, ... is appended
    c.RUN_NAME = ""
    # CUDA devices to train and test on; missing ones are ignored; none is the CPU
    c.GPUS = (0,)
    # loader processes on this machine, divided among the processes of torchrun; 0 loads in the
    # main process
    c.WORKERS = 4
    c.PRINT_FREQ = 20  # steps between log lines, and between debug images
    c.AUTO_RESUME = False  # resume from checkpoint.pth in the run folder if it exists
    c.PIN_MEMORY = True  # page-locked batches, for faster copies to a GPU
    c.RANK = 0  # accepted for old files; ranks come from the launcher
    c.SEED = 0  # (Poise) seed of weights, order and augmentation
    # (Poise) torch threads on the CPU; 0: all cores; -1: the fastest number, measured every 15
    # seconds
    c.CPU_THREADS = 0
    # (Poise) channels_last memory format; often faster, equal up to rounding
    c.CHANNELS_LAST = False

    # (Poise) mixed precision in training and testing: bf16, or fp16 with loss scaling; '' is
    # float32
    c.AMP = ""
    # (Poise) torch.compile the network in training and tools/test.py; needs a compiler, and one
    # device per process
    c.COMPILE = False
    # (Poise) synchronize batch norm over the processes of torchrun
    c.SYNC_BN = False

    c.CUDNN = CfgNode()
    c.CUDNN.BENCHMARK = True  # let cuDNN benchmark its algorithms on the first batch
    c.CUDNN.DETERMINISTIC = False  # only deterministic cuDNN algorithms
    c.CUDNN.ENABLED = True  # use cuDNN at all

    c.MODEL = CfgNode()
    c.MODEL.NAME = "pose_resnet"  # network; poise.models.MODELS lists them
    # initialize as the family does and load MODEL.PRETRAINED when training starts
    c.MODEL.INIT_WEIGHTS = True
    # backbone (or whole network) weights: a path, or an https URL with its sha256 prefix in the
    # name
    c.MODEL.PRETRAINED = ""
    # (Poise) for fine-tuning: skip the last layers of MODEL.PRETRAINED, with a message, if it has
    # other joints
    c.MODEL.REPLACE_HEAD = False
    # number of keypoints, as in the dataset file; 0 takes it from there
    c.MODEL.NUM_JOINTS = 0
    c.MODEL.TAG_PER_JOINT = True  # accepted for old files; without effect there and here
    # codec between keypoints and the network's outputs; poise.codecs.CODECS lists them
    c.MODEL.TARGET_TYPE = "gaussian"
    c.MODEL.IMAGE_SIZE = [256, 256]  # network input, width and height in pixels
    c.MODEL.HEATMAP_SIZE = [64, 64]  # last map of the network, width and height in cells
    c.MODEL.SIGMA = 2.0  # standard deviation of a target's Gaussian in cells
    # (Poise) megvii: sizes in cells of the blurs that make its targets, from coarse to fine
    c.MODEL.KERNELS = [15, 11, 9, 7, 5]
    # (Poise) simcc: bins of an axis for each pixel of the input
    c.MODEL.SIMCC_SPLIT_RATIO = 2.0
    # (Poise) simcc: standard deviations of a label in bins, in x and y; RTMPose: sqrt(side / 8)
    c.MODEL.SIMCC_SIGMA = [4.9, 5.66]
    # (Poise) simcc: labels have the sum 1 instead of the maximum 1
    c.MODEL.SIMCC_NORMALIZE = False
    # (Poise) subtracted from the input's channels, in the order that the network gets them ...
    c.MODEL.MEAN = [0.485, 0.456, 0.406]
    # (Poise) ... then divided by this. HRNet applies ImageNet's RGB figures to BGR input too
    c.MODEL.STD = [0.229, 0.224, 0.225]
    c.MODEL.SCALE = 4  # Res2Net: groups ("scales") of a block
    c.MODEL.BASEWIDTH = 26  # Res2Net: channels of a group where a block has 64 planes
    # ResNet: 'pytorch' strides in the 3x3 convolution, 'caffe' in the first 1x1
    c.MODEL.STYLE = "pytorch"
    # (Poise) posenas: wiring of the cells, a name of poise.models.posenas.genotypes or a path of a
    # genotype's JSON file
    c.MODEL.GENOTYPE = "posenas"
    # options of this network; see its file in poise/models. HEAD of pose_resnet and
    # pose_res2net: 'heatmap' (the default), or 'simcc', two linear layers after the last map
    c.MODEL.EXTRA = CfgNode(new_allowed=True)

    c.LOSS = CfgNode()
    # (Poise) joints_mse; mspn: MSPN's coarse-to-fine supervision, with targets of the megvii codec;
    # kl_discret: of the simcc codec
    c.LOSS.TYPE = "joints_mse"
    # (Poise) joints_mse: the squared error is multiplied by this; mmpose takes 1
    c.LOSS.FACTOR = 0.5
    # (Poise) mspn: the last stage learns from sharper targets than the stages before it
    c.LOSS.COARSE_TO_FINE = True
    # (Poise) kl_discret: factor of the prediction before its softmax
    c.LOSS.BETA = 10.0
    # (Poise) kl_discret: the labels go through a softmax too, times 10
    c.LOSS.LABEL_SOFTMAX = True
    c.LOSS.USE_OHKM = False  # use only the TOPK hardest joints of each person
    c.LOSS.TOPK = 8  # how many, with USE_OHKM
    c.LOSS.USE_TARGET_WEIGHT = True  # ignore unlabeled joints
    # larger weights for wrists, ankles, elbows and knees (weights of the dataset file)
    c.LOSS.USE_DIFFERENT_JOINTS_WEIGHT = False

    c.DATASET = CfgNode()
    # folder of the dataset; '' is the root that the dataset file names
    c.DATASET.ROOT = ""
    # dataset: a file of experiments/datasets, coco, mpii, crowdpose, ...; with FILE the name that
    # it gives
    c.DATASET.DATASET = "mpii"
    # (Poise) instead, a dataset file of your own: joints, sigmas, paths; see
    # experiments/datasets/template.yaml
    c.DATASET.FILE = ""
    # (Poise) more sets to train on, by names of your choice, each a group of keys: FILE, the
    # dataset file or the name of one in experiments/datasets (''; the group's name), SET, ROOT and
    # DATA_FORMAT as above (''; the dataset file's root, DATASET.DATA_FORMAT), REPEAT, how often its
    # persons come in an epoch (1.0; 0.5 is half of them, others each epoch), and JOINTS, {its name:
    # ours} for joints that are not called the same
    c.DATASET.MIX = CfgNode(new_allowed=True)
    c.DATASET.TRAIN_SET = "train"  # split to train on: train2017, train, trainval, ...
    # split to test on: val2017, test-dev2017, valid, test, ...
    c.DATASET.TEST_SET = "valid"
    # 'zip' reads images/<split>.zip; anything else reads plain files
    c.DATASET.DATA_FORMAT = "jpg"
    # (Poise) cache large annotation and detection files in ~/.cache/poise ($XDG_CACHE_HOME)
    c.DATASET.CACHE = True
    c.DATASET.HYBRID_JOINTS_TYPE = ""  # appended to the dataset's name in the run folder
    # train only on persons whose joints agree with their box (HRNet's select_data)
    c.DATASET.SELECT_DATA = False
    c.DATASET.FLIP = True  # augmentation: flip half of the samples
    # (Poise) turn images as their EXIF entry says; HRNet does not, mmpose does
    c.DATASET.EXIF = False
    # (Poise) clip annotated boxes to their image: 'hrnet' one pixel narrower, 'mmpose', or 'none'
    c.DATASET.BOX_CLIP = "hrnet"
    # (Poise) training boxes grow by these factors in x and y, before the fit to the input's aspect
    # ratio
    c.DATASET.BOX_MARGIN = [1.25, 1.25]
    # (Poise) augmentation: and further, by 1 to 1 + this, drawn for x and y alone (MSPN)
    c.DATASET.BOX_MARGIN_RANDOM = [0.0, 0.0]
    # (Poise) augmentation: probability of a shifted center (mmpose) ...
    c.DATASET.PROB_CENTER_SHIFT = 0.0
    c.DATASET.CENTER_SHIFT = 0.16  # (Poise) ... by up to this fraction of the box size
    # (Poise) distribution of size and rotation: 'normal' as HRNet, 'uniform' as MSPN
    c.DATASET.AUGMENT_DRAW = "normal"
    # (Poise) augmentation: the box's size is multiplied by this (MSPN)
    c.DATASET.SCALE_SHRINK = 1.0
    # augmentation of the box size: relative standard deviation and limit; half the range with
    # 'uniform'
    c.DATASET.SCALE_FACTOR = 0.25
    # augmentation: standard deviation of the rotation in degrees, limit twice that; the limit with
    # 'uniform'
    c.DATASET.ROT_FACTOR = 30.0
    # (Poise) augmentation: probability of a rotation
    c.DATASET.PROB_ROTATION = 0.6
    # (Poise) which half and which box: 'hrnet' around the joints' mean, 'mspn' around their extent
    c.DATASET.HALF_BODY = "hrnet"
    # (Poise) 'mspn': its box grows by 1 to 1 + this, drawn for x and y alone
    c.DATASET.HALF_BODY_MARGIN_RANDOM = [0.6, 0.8]
    # augmentation: probability of a crop to the upper or lower body
    c.DATASET.PROB_HALF_BODY = 0.0
    c.DATASET.NUM_JOINTS_HALF_BODY = 8  # ... of persons with more labeled joints than this
    # channel order of the network's input; False is BGR, as OpenCV reads
    c.DATASET.COLOR_RGB = False

    c.TRAIN = CfgNode()
    c.TRAIN.LR = 0.001  # learning rate of epoch 0
    c.TRAIN.LR_FACTOR = 0.1  # the rate is multiplied by this ...
    c.TRAIN.LR_STEP = [90, 110]  # ... when these epochs begin, in ascending order
    # (Poise) step: by LR_STEP and LR_FACTOR; linear, cosine: to 0 at the end, step by step
    c.TRAIN.LR_SCHEDULE = "step"
    c.TRAIN.WARMUP_ITERS = 0  # (Poise) steps of linear warm-up ...
    c.TRAIN.WARMUP_FACTOR = 0.1  # (Poise) ... from this fraction of the learning rate
    # (Poise) samples per step that LR and ITERATIONS are meant for: with others LR is scaled in
    # proportion and ITERATIONS inversely; 0: never
    c.TRAIN.BASE_BATCH = 0
    # (Poise) length of the training in steps instead of END_EPOCH
    c.TRAIN.ITERATIONS = 0
    # adam (ignores WD, as the HRNet family does), adam_l2 (adds WD to the gradient), adamw or sgd
    c.TRAIN.OPTIMIZER = "adam"
    # (Poise) apply WD to normalization parameters and biases too
    c.TRAIN.WD_NORM_AND_BIAS = True
    c.TRAIN.MOMENTUM = 0.9  # sgd: momentum
    c.TRAIN.WD = 0.0001  # adam_l2, adamw and sgd: weight decay
    c.TRAIN.NESTEROV = False  # sgd: Nesterov momentum
    c.TRAIN.GAMMA1 = 0.99  # accepted for old files; without effect there and here
    c.TRAIN.GAMMA2 = 0.0  # accepted for old files; without effect there and here
    c.TRAIN.BEGIN_EPOCH = 0  # first epoch
    c.TRAIN.END_EPOCH = 140  # epoch at which training ends; not trained itself
    c.TRAIN.RESUME = False  # as AUTO_RESUME, under SimpleBaseline's name
    c.TRAIN.CHECKPOINT = ""  # resume from this checkpoint instead of that of the run folder
    # samples per step on each device, or in each process of torchrun
    c.TRAIN.BATCH_SIZE_PER_GPU = 32
    # (Poise) gradient accumulation: batches per optimizer step
    c.TRAIN.ACCUMULATE = 1
    c.TRAIN.SHUFFLE = True  # shuffle the samples in each epoch
    # (Poise) epochs between tests; the last epoch is always tested
    c.TRAIN.EVAL_INTERVAL = 1
    # (Poise) decay of the exponential moving average of the weights, which is tested and saved
    # too (*_ema.pth); 0: none
    c.TRAIN.EMA_DECAY = 0.0
    # (Poise) stop after so many tests without a better score, with EMA_DECAY of either network;
    # 0: never
    c.TRAIN.PATIENCE = 0
    # (Poise) steps between checkpoints within an epoch; 0: none
    c.TRAIN.CHECKPOINT_STEPS = 0
    c.TRAIN.CHECKPOINT_MINUTES = 30.0  # (Poise) minutes between checkpoints; 0: none
    # (Poise) number of checkpoints: checkpoint.pth and the older checkpoint_1.pth, ...
    c.TRAIN.CHECKPOINTS_KEPT = 2

    c.TEST = CfgNode()
    c.TEST.BATCH_SIZE_PER_GPU = 32  # persons per step on each device
    c.TEST.FLIP_TEST = False  # average with the prediction for the flipped image
    c.TEST.POST_PROCESS = False  # refine each peak to sub-pixel precision, as TEST.DECODE says
    # (Poise) refinement: '' that of the codec, 'quarter' of a cell, or 'dark' (DARK, arXiv
    # 1910.06278)
    c.TEST.DECODE = ""
    # (Poise) dark, udp, megvii: cells of the blur before decoding, odd; 0: as wide as MODEL.SIGMA,
    # megvii 5
    c.TEST.BLUR_KERNEL = 0
    # (Poise) both coordinates of a joint whose heatmap is nowhere above 0, in cells; mmpose takes
    # -1; megvii has a rule of its own
    c.TEST.EMPTY_CELL = 0
    # flip test: shift the flipped heatmap by one cell, for better alignment
    c.TEST.SHIFT_HEATMAP = False
    c.TEST.USE_GT_BBOX = False  # boxes from the annotations instead of TEST.COCO_BBOX_FILE
    c.TEST.IMAGE_THRE = 0.1  # detections with a lower score are dropped
    # accepted for old files; without effect there and here (boxes come suppressed)
    c.TEST.NMS_THRE = 0.6
    # (Poise) test boxes grow by these factors in x and y, before the fit to the input's aspect
    # ratio
    c.TEST.BOX_MARGIN = [1.25, 1.25]
    c.TEST.OKS_NMS = True  # (Poise) remove poses that repeat a better one; MSPN does not
    c.TEST.SOFT_NMS = False  # soft OKS-NMS instead of hard
    c.TEST.OKS_THRE = 0.5  # OKS above which two poses are one
    c.TEST.IN_VIS_THRE = 0.0  # joints above this score count in a person's score
    # person detections: a JSON list of {image_id, category_id, bbox, score}
    c.TEST.COCO_BBOX_FILE = ""
    c.TEST.BBOX_THRE = 1.0  # accepted for old files; without effect there and here
    # weights to test; '' is the run folder's model_best.pth, else its final_state.pth
    c.TEST.MODEL_FILE = ""
    # (Poise) test with batch norms fused into the convolutions before them; numerically
    # equivalent, one pass over each feature map fewer
    c.TEST.FOLD_BN = True
    c.TEST.PICTURES = 8  # (Poise) number of images drawn with predictions after a test

    # (Poise) tools/search.py, see docs/search.md; the values are those of PoseNAS, most of them of
    # its last search on MPII
    c.SEARCH = CfgNode()
    # what is searched: joint (encoder and decoder), encoder or decoder
    c.SEARCH.MODE = "joint"
    # where the cells that are not searched come from, as MODEL.GENOTYPE
    c.SEARCH.GENOTYPE = "posenas"
    # candidates of the encoder's edges
    c.SEARCH.ENCODER_OPERATIONS = (
        "max_pool_3x3, avg_pool_3x3, skip_connect, dil_conv_3x3_2, std_conv_1x1, std_conv_3x3"
    )
    # ... and of the decoder's
    c.SEARCH.DECODER_OPERATIONS = (
        "avg_pool_3x3, max_pool_3x3, std_conv_3x3, dil_conv_3x3_2, dil_conv_3x3_4, se_connect"
    )
    c.SEARCH.LAYERS = 12  # encoder cells of the search's network, a multiple of 4
    c.SEARCH.INIT_CHANNELS = 32  # its width, as MODEL.EXTRA.INIT_CHANNELS
    # of the search instead of SEED: weights, split, order and augmentation
    c.SEARCH.SEED = 2
    c.SEARCH.SUBSET = 1.0  # fraction of the training images that the search uses
    # fraction of those that train the weights; the others train the architecture
    c.SEARCH.W_FRACTION = 0.5
    c.SEARCH.BATCH_SIZE = 64  # samples of a step of either kind
    c.SEARCH.INIT_EPOCHS = 10  # the first epochs train the weights alone ...
    c.SEARCH.EPOCHS = 40  # ... those up to this one weights and architecture in turns
    # which of the two steps comes first: weights, as in PoseNAS, or architecture, as in DARTS
    c.SEARCH.ORDER = "weights"
    c.SEARCH.W_LR = 0.001  # weights: learning rate of Adam
    c.SEARCH.LR_FACTOR = 0.2  # it is multiplied by this ...
    c.SEARCH.LR_STEP = [30]  # ... when these epochs begin, in ascending order
    c.SEARCH.GRAD_CLIP = 5.0  # weights: maximum gradient norm; 0: no clipping
    c.SEARCH.ALPHA_LR = 0.0004  # architecture: learning rate of Adam
    c.SEARCH.ALPHA_BETAS = [0.9, 0.999]  # architecture: Adam's averages
    c.SEARCH.ALPHA_WD = 0.0001  # architecture: weight decay, added to the gradient
    # one of so many channels passes through the candidates, the others bypass them (PC-DARTS);
    # less memory and time
    c.SEARCH.PARTIAL_CHANNELS = 1
    # recompute candidates in the backward pass (gradient checkpointing); less memory, more time
    c.SEARCH.CHECKPOINTING = False
    # epochs between tests of the search network, which is also tested at the end; 0: never
    c.SEARCH.EVAL_INTERVAL = 1

    c.DEBUG = CfgNode()
    # enable the four below; images are written every PRINT_FREQ steps
    c.DEBUG.DEBUG = False
    c.DEBUG.SAVE_BATCH_IMAGES_GT = False  # crops with their true joints
    c.DEBUG.SAVE_BATCH_IMAGES_PRED = False  # crops with their predicted joints
    c.DEBUG.SAVE_HEATMAPS_GT = False  # target heatmaps
    c.DEBUG.SAVE_HEATMAPS_PRED = False  # predicted heatmaps
    return c
