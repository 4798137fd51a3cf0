"""`distgan train`, `check` and `config`: a run, what it would do, and its settings."""

import argparse

from distgan.cli.arguments import Commands, add_command, add_config_arguments, add_plugin_argument, load_plugins
from distgan.cli.process import leave
from distgan.distributed.launch_env import init_rank_env, rank
from distgan.distributed.preemption import handle_signals
from distgan.errors import ConfigError
from distgan.storage.printable import show


def add_commands(commands: Commands) -> None:
    """Add train, check and config."""
    _add_train(commands)
    _add_check(commands)
    _add_config(commands)


def _add_train(commands: Commands) -> None:
    parser = add_command(
        commands,
        "train",
        _train,
        "train a GAN, or resume a run that stopped",
        "distgan train configs/folder128.yaml data.shards=data/faces run.dir=runs/faces",
        "accelerate launch --multi_gpu --num_processes 8 -m distgan train configs/cifar10.yaml train.batch=512",
    )
    add_config_arguments(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be done, and stop there")


def _train(options: argparse.Namespace) -> int:
    from distgan.config.batch_plan import make_batch_plan
    from distgan.config.load import load

    if options.dry_run:
        return _check(options)
    with handle_signals():
        world = init_rank_env()  # first: rank 0 alone prints, and this sets the rank
        config = load(options.config, options.overrides, more_plugins=options.plugin)
        make_batch_plan(config, world)

        from distgan.training.run import train

        code = train(config)
    return leave(code, world)


def _add_check(commands: Commands) -> None:
    parser = add_command(
        commands,
        "check",
        _check,
        "validate a config, its shards and its batch plan",
        "distgan check configs/cifar10.yaml --ranks 8 data.shards=data/cifar10",
    )
    add_config_arguments(parser)
    parser.add_argument("--ranks", type=int, help="ranks to plan for (default: this launch's)")


def _check(options: argparse.Namespace) -> int:
    from distgan.config.batch_plan import make_batch_plan
    from distgan.config.load import load

    launched = init_rank_env()
    asked = getattr(options, "ranks", None)
    world = launched if asked is None else asked
    if world < 1:
        raise ConfigError(f"--ranks {world}: at least 1")
    config = load(options.config, options.overrides, more_plugins=options.plugin)
    batch_plan = make_batch_plan(config, world)
    if rank() > 0:
        return 0

    from distgan.tools.check import check

    lines, warnings = check(config, batch_plan)
    show(*lines, *(f"warning: {line}" for line in warnings))
    return 0


def _add_config(commands: Commands) -> None:
    parser = add_command(
        commands,
        "config",
        _config,
        "print the resolved config, or all keys",
        "distgan config configs/cifar10.yaml train.batch=256",
        "distgan config --help-keys loss",
        "distgan config --diff runs/faces configs/folder128.yaml",
    )
    add_plugin_argument(parser)
    parser.add_argument("config", nargs="?", help="YAML file or run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--ranks", type=int, default=0, help="refuse a batch that this number of ranks cannot share")
    parser.add_argument("--help-keys", nargs="?", const="", metavar="GROUP", help="list the keys that start with GROUP")
    parser.add_argument("--markdown", action="store_true", help="with --help-keys: all keys, as docs/config.md")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="how two configs or run folders differ")


def _config(options: argparse.Namespace) -> int:
    from distgan.config.batch_plan import make_batch_plan
    from distgan.config.docs import diff, help_keys, markdown
    from distgan.config.load import is_run, load, to_yaml
    from distgan.config.records import without_secrets

    if options.help_keys is not None:
        load_plugins(options)
        show(*(markdown() if options.markdown else help_keys(options.help_keys)))
    elif options.diff:
        if options.config is not None:
            raise ConfigError(f"--diff compares two files, without overrides: {options.config} is one too many")
        load_plugins(options)
        show(*diff(*(without_secrets(load(path, is_saved=is_run(path))) for path in options.diff)))
    elif options.config is None:
        raise ConfigError("name a config file, or pass --help-keys or --diff")
    else:
        config = load(options.config, options.overrides, more_plugins=options.plugin)
        if options.ranks:
            make_batch_plan(config, options.ranks)
        show(*to_yaml(without_secrets(config)).rstrip("\n").split("\n"))
    return 0
