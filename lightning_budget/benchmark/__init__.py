"""Methods × data sets × seeds: trained with equal tuning, selected on validation, judged on test once.

A *cell* is one method on one data set with one seed (:mod:`.suite`). It has a number of *trials* (:mod:`.trial`), each
a training with settings drawn from the method's search space (:mod:`.search`); the one that is best on validation is
judged on test (:mod:`.cell`). Everything finished lies in a folder (:mod:`.store`), so that a run goes on where one
before was cut off, in several processes (:mod:`.pool`). What the folder says (:mod:`.results`, :mod:`.comparison`,
:mod:`.verdict`) is told as a table and pictures (:mod:`.markdown`, :mod:`.figure`), without any training.
"""
