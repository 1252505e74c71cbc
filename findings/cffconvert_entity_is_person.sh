#!/usr/bin/env bash
# A good guess: an author of CITATION.cff that has a `name` alone, which the Citation File Format calls an entity (a team, an
#   organisation), is an Organization in CodeMeta and schema.org.
# What happens: cffconvert writes it as a Person in both, without a warning, beside a real person whom it writes alike.
# Versions: cffconvert 2.0.0.
# Why it matters: archives and catalogues read codemeta.json, and show a team as somebody of that name. Here codemeta.json is made
#   from CITATION.cff by `common/publish/about.py`, where an entity is an Organization.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q cffconvert==2.0.0 >&2
cat > CITATION.cff <<'EOF'
cff-version: 1.2.0
title: A tool
message: Cite it.
type: software
authors:
  - name: The Example Team
  - family-names: Doe
    given-names: Jane
EOF
env/bin/cffconvert --validate -i CITATION.cff
env/bin/python - <<'EOF'
import json
from importlib.metadata import version

from cffconvert import Citation

print("cffconvert", version("cffconvert"))
citation = Citation(open("CITATION.cff").read())
for name, text in (("codemeta", citation.as_codemeta()), ("schema.org", citation.as_schemaorg())):
    team, person = json.loads(text)["author"]
    print(f"{name}: {team} and {person}")
    assert team == {"@type": "Person", "name": "The Example Team"}
    assert person == {"@type": "Person", "familyName": "Doe", "givenName": "Jane"}
print("as described")
EOF
