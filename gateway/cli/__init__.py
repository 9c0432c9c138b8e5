"""The command line. Exit status: 0 done, 1 the answer is no, 2 wrong usage or configuration."""

from __future__ import annotations

import gc

# What is made from here on mostly stays to the end: looking through it again and again takes a tenth of each start.
gc.set_threshold(100_000)

import click

from gateway.cli.chaos import chaos
from gateway.cli.explain import explain
from gateway.cli.fsck import fsck
from gateway.cli.gateway import check, pipeline, run
from gateway.cli.guest import delegate, milter
from gateway.cli.lint import lint
from gateway.cli.plugin import plugin
from gateway.cli.quarantine import quarantine
from gateway.cli.queue import queue
from gateway.cli.records import records
from gateway.cli.reload import reload
from gateway.cli.replay import replay
from gateway.cli.route import route
from gateway.cli.selftest import selftest
from gateway.cli.shadow import shadow
from gateway.cli.simulate import simulate
from gateway.cli.specs import test
from gateway.cli.whatif import whatif


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gatepost", prog_name="gatepost")
def main() -> None:
    """Gatepost, a mail filtering gateway."""


for _command in (
    *(run, reload, check, lint, pipeline, delegate, milter, queue, quarantine),
    *(explain, simulate, chaos, shadow, replay, plugin),
):
    main.add_command(_command)
main.add_command(test)
main.add_command(fsck)
for _command in (whatif, records, route, selftest):
    main.add_command(_command)
