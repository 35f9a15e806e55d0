# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""``python .ci/not_run.py REPORT``: what a run of the tests could not check on this machine, from its JUnit report."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def main(report: Path) -> None:
    try:
        skips = ElementTree.parse(report).iter("skipped")
    except (OSError, ElementTree.ParseError) as error:
        sys.exit(f"error: '{report}': no report of the tests: {error}")
    # "see FILE": a test that another one runs in a process of its own.
    reasons = Counter(skip.get("message", "") for skip in skips if not skip.get("message", "").startswith("see "))
    here = f"Python {platform.python_version()} on {platform.system()}"
    print(f"Not checked: all but {here}" + (", and there:" if reasons else "."))
    for reason, count in reasons.most_common():
        print(f"  {count} {'test' if count == 1 else 'tests'}: {reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
