"""Complete a bill of materials (CycloneDX) with the licences that packages state in no form a program knows.

    python sbom.py BOM.json > COMPLETE.json

Where a package has none at all, the list says so, and a warning names the package.
"""

import json
import sys
from pathlib import Path
from typing import Any

CONCLUDED = {
    "antlr4-python3-runtime": "BSD-3-Clause",
    "huey": "MIT",
    "kfp-kubernetes": "Apache-2.0",
    "kfp-pipeline-spec": "Apache-2.0",
    "kfp-server-api": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "word2number": "MIT",
}
"""Read in each package's own files."""
UNKNOWN = {"license": {"name": "NOASSERTION"}}
"""SPDX's word for a licence that nobody has looked up."""


def complete(bom: dict[str, Any]) -> dict[str, Any]:
    """The same list, in which every component has a licence, or `UNKNOWN`."""
    for component in bom["components"]:
        if not component.get("licenses"):
            name = component["name"]
            known = {"license": {"id": CONCLUDED.get(name), "acknowledgement": "concluded"}}
            component["licenses"] = [known if name in CONCLUDED else UNKNOWN]
    unknown = [component["name"] for component in bom["components"] if component["licenses"] == [UNKNOWN]]
    if unknown:
        advice = "look it up, and add it to images/sbom.py"
        sys.stderr.write(f"warning: no licence is known of {', '.join(unknown)}: {advice}\n")
    return bom


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    json.dump(complete(found), sys.stdout, indent=1, ensure_ascii=False)
