"""The files in these folders belong to the runs of other suites, not to this one."""

collect_ignore = ["helpers", "inside"]
