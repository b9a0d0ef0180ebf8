"""Model families, one file each: encode prompts, velocity, decode, LoRA targets. A family knows nothing
of GRPO.

To add one: write the file with its `FAMILY` (family.py says what that holds), add its line here, and
its name and defaults to `recipe.Model`.
"""

FAMILIES = {
    "sd3": "flow_trainer.models.families.sd3",
    "flux": "flow_trainer.models.families.flux",
    "qwen_image": "flow_trainer.models.families.qwen_image",
    "z_image": "flow_trainer.models.families.z_image",
    "flux2_klein": "flow_trainer.models.families.flux2_klein",
}
