"""What an engine folder is: its manifest, its programs' signatures, the machine that it is for."""
