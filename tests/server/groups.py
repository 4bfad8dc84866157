"""Modules that share servers. They run one after the other on one worker of pytest-xdist."""

# Module -> the group of servers that its tests use.
GROUPS = {
    "test_clients.py": "guide",
    "test_guard.py": "guide",
    "test_guide.py": "guide",
    "test_plugin_mode.py": "guide",
    "test_prove.py": "guide",
    "test_shapes.py": "guide",
    "test_adoption.py": "comparison",
    "test_bench.py": "comparison",
    "test_isolation.py": "comparison",
    "test_full_disk.py": "four slots",
    "test_slots.py": "four slots",
    "test_tenants.py": "four slots",
    "test_file_changes.py": "two processes",
    "test_record.py": "two processes",
}
