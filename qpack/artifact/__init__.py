"""The `.qpk` container and the self-decoding `.pyz` around it. No torch."""
