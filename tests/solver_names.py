"""What diffusers, k-diffusion, ComfyUI and diff-sampler call their solvers, in full, as their
releases of 2026 have them: diffusers 0.42.1, k-diffusion 4601bf0, ComfyUI 02159d8, diff-sampler
68d5ce4.
"""

_DIFFUSERS = """Amused BlockRefinement ConsistencyDecoder CMStochasticIterative DDIM CogVideoXDDIM
DDIMInverse DDIMParallel DDPM DDPMParallel DDPMWuerstchen DEISMultistep DiscreteDDIM CogVideoXDPM
DPMSolverMultistep DPMSolverMultistepInverse DPMSolverSinglestep EDMDPMSolverMultistep EDMEuler
EntropyBound EulerAncestralDiscrete EulerDiscrete FlowMapEulerDiscrete FlowMatchEulerDiscrete
FlowMatchHeunDiscrete FlowMatchLCM Helios HeliosDMD HeunDiscrete IPNDM KDPM2Discrete
KDPM2AncestralDiscrete LCM LTXEulerAncestralRF MiniMaxH3 PNDM Piflow RFD4Proteina RePaint SASolver
SCM ScoreSdeVe TCD UnCLIP UniPCMultistep VQDiffusion LMSDiscrete CosineDPMSolverMultistep
DPMSolverSDE KarrasVe ScoreSdeVp"""
_K_DIFFUSION = """euler euler_ancestral heun dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive
dpmpp_2s_ancestral dpmpp_sde dpmpp_2m dpmpp_2m_sde dpmpp_3m_sde"""
_COMFYUI = """euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0
exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral
dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde
dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm
ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3
sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2 ar_video"""
_DIFF_SAMPLER = "euler heun dpm ipndm ipndm_v deis dpmpp unipc amed gits"

NAMES = {
    "diffusers": [f"{name}Scheduler" for name in _DIFFUSERS.split()],
    "k_diffusion": [f"sample_{name}" for name in _K_DIFFUSION.split()] + ["log_likelihood"],
    "comfyui": _COMFYUI.split(),
    "diff_sampler": _DIFF_SAMPLER.split(),
}
