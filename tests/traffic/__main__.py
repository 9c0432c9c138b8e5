"""Sends a day of made-up mixed traffic to a mail server, for load tests.

    python -m tests.traffic --to 127.0.0.1:2525 --zone zone.txt

The server needs the names that the day is made of: with `--zone` they are written to a file, as zone lines, and
`python -m tests.traffic.zone FILE` answers from it. It has to take mail for example.org and example.net, and with
`--proxy` a PROXY header from here, which says that clients are who they are in the day.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path

from tests.traffic.callers import play
from tests.traffic.day import make_day
from tests.traffic.zone import zone_lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.traffic", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--to", metavar="HOST:PORT", help="where to send it; without this only the zone is written")
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=40, help="at once")
    parser.add_argument("--proxy", action="store_true", help="say who the clients are, by PROXY headers")
    parser.add_argument("--zone", type=Path, help="write the day's DNS to this file, and wait for Enter")
    options = parser.parse_args()
    day = make_day(options.seed, options.transactions)
    if options.zone:
        options.zone.write_text("\n".join(zone_lines(day)) + "\n")
        if options.to:
            input(f"serve {options.zone}, then press Enter ")
    if not options.to:
        return
    host, _, port = options.to.rpartition(":")
    began = time.monotonic()
    heard = asyncio.run(play(day.visits, host, int(port), options.sessions, proxy=options.proxy))
    seconds = time.monotonic() - began
    print(f"{len(heard)} transactions in {seconds:.0f} s, {len(heard) / seconds:.0f}/s")
    for word, count in Counter(h.word for h in heard).most_common():
        print(f"{count:>9} {word}")


if __name__ == "__main__":
    main()
