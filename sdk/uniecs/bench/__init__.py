"""What uniecs costs on this machine: `uniecs bench`, its report, and `uniecs plan`."""
