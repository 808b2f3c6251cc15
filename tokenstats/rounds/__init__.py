"""Masks made anew while a model trains: score, mask, train on. Stands above the stages; see :mod:`tokenstats.rounds.run`."""
