"""The commands of ``mist-loss`` that need nothing but the core."""
