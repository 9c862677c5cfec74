"""Students from cached labels: datasets over label stores, recipes, losses and one training loop.

::

    maskmill train labels/ --labeled photos/ --recipe weighted -o run/
    torchrun --nproc-per-node 4 -m maskmill train labels/ --labeled photos/ --recipe csl -o run/

A run is a folder:

================  ======================================================================================================
``run.json``      what is trained, written once, before the first step: ``format_version`` (1), ``recipe`` (the whole
                  :class:`~maskmill.trainer.recipes.Recipe` as plain data), ``model`` (``{"name", "options"}``),
                  ``classes``, ``background`` (index or null), ``ignore`` (index of pixels without a label), ``labels``
                  (label index of the labeled folder → class, -1 to ignore), ``input`` (the fields of
                  :class:`~maskmill.engine.model.bundle.InputSpec`), ``data`` (what it was trained on) and ``versions``
``last.pt``       the complete state after the last saved step; training goes on from it
``best.pt``       the same, at the best mIoU on the validation images; absent without validation
``log.csv``       a row each logged step, see :mod:`maskmill.trainer.log`
``tensorboard/``  the same figures as TensorBoard events
================  ======================================================================================================

A checkpoint is one dictionary of tensors and plain data that ``torch.load(..., weights_only=True)`` takes: ``step``
(finished steps), ``model`` and ``ema`` (state dictionaries of the student; ``ema`` is None where the recipe keeps
none, and is the one to use otherwise), ``optimizer``, ``scaler`` (None without fp16), ``best`` (best mIoU so far, or
None), ``miou`` (mIoU at this step, or None).

A student is a ``torch.nn.Module``: ``student(images)`` takes (N, 3, H, W) float32, normalized, and gives logits
(N, C, h, w) at any resolution; it is ``student.decode(student.encode(images))``, with a list of feature maps between
the two, so that a recipe can drop channels of them. ``student.backbone_parameters()`` and
``student.head_parameters()`` say which parameters get the base learning rate and which its multiple.
"""
