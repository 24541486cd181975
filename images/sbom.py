"""Complete a bill of materials (CycloneDX) with the licences that packages state in no form a program knows.

    python sbom.py BOM.json > COMPLETE.json

Ends with an error where a package has none at all, so that an image is not built whose list has a gap.
"""

import json
import sys
from pathlib import Path
from typing import Any

CONCLUDED = {
    "huey": "MIT",
    "kfp-kubernetes": "Apache-2.0",
    "kfp-pipeline-spec": "Apache-2.0",
    "kfp-server-api": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "transformers": "Apache-2.0",
}
"""Read in each package's own files."""


def complete(bom: dict[str, Any]) -> dict[str, Any]:
    """The same list, in which every component has a licence.

    Raises:
        ValueError: naming those without one.
    """
    for component in bom["components"]:
        if not component.get("licenses") and component["name"] in CONCLUDED:
            known = {"id": CONCLUDED[component["name"]], "acknowledgement": "concluded"}
            component["licenses"] = [{"license": known}]
    gaps = [component["name"] for component in bom["components"] if not component.get("licenses")]
    if gaps:
        raise ValueError(f"no licence is known of {', '.join(gaps)}: look it up, and add it to images/sbom.py")
    return bom


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    json.dump(complete(found), sys.stdout, indent=1, ensure_ascii=False)
