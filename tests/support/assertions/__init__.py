"""What tests wait for, count and compare."""
