"""The flags of train.py. Their defaults are those of `TrainOptions`; None stands for a flag that was not given."""

from __future__ import annotations

from utils.settings.flags import Parser
from utils.settings.options import AMP_CHOICES, DEFAULT_HYP, OPTIMIZERS, TrainOptions


def train_parser(description: str) -> Parser:
    """Return the parser of train.py."""
    parser = Parser(description, TrainOptions, unset=True)
    _add_data_and_model(parser)
    _add_optimisation(parser)
    _add_output_and_speed(parser)
    more = parser.group("more")
    more("--seed", type=int, help="random seed")
    more("--evolve", nargs="?", type=int, const=300, metavar="N", shown="off; without N: 300",
         help="evolve the hyper-parameters for N generations")  # fmt: skip
    more("--resume-evolve", "--resume_evolve", nargs="?", const=True, metavar="FOLDER", shown="the newest evolution",
         help="continue an evolution, up to --evolve generations")  # fmt: skip
    more("--verbose", action="store_true", help="print for each layer what was loaded from --weights")
    return parser


def _add_data_and_model(parser: Parser) -> None:
    data, model = parser.group("data"), parser.group("model")
    data("--data", metavar="YAML", help="dataset yaml, also looked for in data/")
    data("--imgsz", "--img", "--img-size", type=int, metavar="PX", help="image size in pixels")
    data("--rect", action="store_true", help="rectangular batches of images of similar shape, without mosaic")
    data("--single-cls", action="store_true", help="treat all classes as one")
    data("--image-weights", action="store_true", help="sample images of poorly detected classes more often")
    data("--multi-scale", action="store_true", help="vary the size of each batch from 0.5 to 1.5 times --imgsz")
    data("--quad", action="store_true", help="combine four images into one of twice the side")
    model("--cfg", metavar="YAML", shown="yolov5_shufflenet.yaml, or the model of --weights",
          help="model yaml, also looked for in models/, models/hub/ and models/zoo/")  # fmt: skip
    model("--weights", metavar="PT", shown="from scratch",
          help="checkpoint to start from, or 'torchvision': ImageNet weights for the backbone, downloaded")  # fmt: skip
    model("--backbone-weights", metavar="PTH", help="ShuffleNetV2 weights to start the backbone from")
    model("--teacher", metavar="PT", help="checkpoint or exported model from which the network also learns")
    model("--fresh-head", action="store_true", help="do not load the head from --weights")
    model("--freeze", nargs="+", type=int, metavar="N",
          help="layers not to train: 10 freezes the first ten, 0 1 2 these three")  # fmt: skip
    model("--noautoanchor", action="store_true", help="do not adapt the anchors to the labels")


def _add_optimisation(parser: Parser) -> None:
    add = parser.group("optimisation")
    add("--epochs", type=int, metavar="N", help="number of epochs")
    add("--batch-size", "--batch", type=int, metavar="N",
        help="images per step over all processes; -1: as many as fit into memory")  # fmt: skip
    add("--hyp", metavar="YAML", shown=f"{DEFAULT_HYP}, or that of the head",
        help="hyper-parameters, also looked for in data/hyps/")  # fmt: skip
    add("--optimizer", metavar="NAME", help=f"one of {', '.join(OPTIMIZERS)} (that of the hyp file, or SGD)")
    add("--cos-lr", action="store_true", help="cosine learning rate schedule")
    add("--label-smoothing", type=float, metavar="X", help="share of a class target that is moved to the other classes")
    add("--patience", type=int, metavar="N", help="stop after N epochs without improvement; 0: never")
    add("--sync-bn", action="store_true", help="batch norm statistics over the batches of all processes")


def _add_output_and_speed(parser: Parser) -> None:
    output, speed = parser.group("output"), parser.group("speed")
    parser.add_output("runs/train")
    output("--resume", nargs="?", const=True, metavar="PT", shown="off; without PT: the newest run",
           help="continue an interrupted run")  # fmt: skip
    output("--nosave", action="store_true", help="write checkpoints only at the end")
    output("--save-period", type=int, metavar="N", help="also keep the weights of every Nth epoch; -1: never")
    output("--noval", action="store_true", help="validate only after the last epoch")
    output("--noplots", action="store_true", help="draw no plots")
    output("--tensorboard", action="store_true", help="also log for TensorBoard (pip install tensorboard)")
    parser.add_device()
    speed("--workers", type=int, metavar="N", help="maximum number of worker processes that load images")
    speed("--cache", nargs="?", const="ram", metavar="WHERE", shown="off; without WHERE: ram",
          help="keep decoded images in ram or on disk")  # fmt: skip
    speed("--parts", type=int, metavar="N", shown="one per core",
          help="on a CPU, compute N batches, or N parts of one, at once; 1: share each operation")  # fmt: skip
    speed("--amp", choices=AMP_CHOICES, help="number format of the forward pass")
    speed("--compile", action="store_true", help="compile the network with torch.compile, on a GPU")
    speed("--gpu-augment", action="store_true", help="change colours and flip images on the GPU, not in the workers")
