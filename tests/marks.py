"""Marks that several test modules share."""

import pytest

from circuits import ngspice

needs_ngspice = pytest.mark.skipif(not ngspice.available(), reason="ngspice is not installed")
