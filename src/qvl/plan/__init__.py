"""Memory, speed, cost, fit, choose, launch: arithmetic over catalog and inputs. Runs nothing."""
