#!/usr/bin/env bash
# A Ray cluster in a Slurm job: sbatch docs/slurm.sh repro
# Submit it in the project's folder, with its virtual environment active. Change the lines below.
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
set -euo pipefail

RAY_AUTH_TOKEN=$(openssl rand -hex 32)  # srun passes it to the other nodes
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# This script runs on the first node of the job, which is the head of the cluster.
address=$(hostname --ip-address | cut --delimiter=' ' --fields=1)
ray start --head --node-ip-address="$address" --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" \
    --include-dashboard=false
others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    # Since Slurm 22.05, srun does not take over the CPUs per task of the job.
    srun --nodes="$others" --ntasks="$others" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        --exclude="$SLURMD_NODENAME" \
        ray start --address="$address:6379" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi

RAY_ADDRESS="$address:6379" python -m commands.cluster "$@"
