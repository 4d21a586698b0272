"""The configuration of a run: read, merged once, checked, then frozen. The keys are in `graft.config.options`.

Precedence, lowest first: the defaults there and in the parts' signatures, `--base_config`, each
`--config` in order, `key=value` on the command line. Mappings merge key by key; a list replaces the
list below it. Two exceptions make deltas short and safe:

* a part (`task`, `student`, `teacher`) whose `name` changes is replaced, not mixed with the old one's
  arguments;
* a mapping laid over a list of parts changes its elements by name: `objective: {cka: {weight: 0}}` in
  a file, `objective.cka.weight=0` on the command line.

Everything here runs before torch is imported, so a typo costs a second, not a minute.
"""

from graft.config.building import difference, load, merge, restored

__all__ = ["difference", "load", "merge", "restored"]
